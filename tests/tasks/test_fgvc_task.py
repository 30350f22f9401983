"""The fine-grained task against the definition of its losses and metrics."""

import math

import pytest
import torch
from torch.nn import functional as F

from dual_cross_attention import InputError, create_model
from dual_cross_attention.errors import TrainingDivergedError
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.tasks import FGVCTask
from tests.helpers import TINY


def make_task(num_classes, ablation="full", **options):
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", num_classes, img_size=32, ablation=ablation, **TINY)
    for head in (model.backbone.head, *([model.glca_head] if model.has_glca else [])):
        torch.nn.init.normal_(head.weight)  # fresh heads are near zero: every class would score about the same
    return FGVCTask(model, **options)


def evaluate(task, batches):
    run_eval_steps(task, batches)
    return task.compute_metrics()


def make_batches(num_classes, sizes=(17, 9, 14), unreadable=()):
    generator = torch.Generator().manual_seed(1)
    batches, count = [], 0
    for size in sizes:
        labels = torch.randint(num_classes, (size,), generator=generator)
        valid = torch.tensor([i not in unreadable for i in range(count, count + size)])
        count += size
        images = torch.randn(size, 3, 32, 32, generator=generator)
        batches.append({"images": images, "labels": labels, "valid": valid})
    return batches


def accuracy_by_counting(task, batches):
    """One image and one class at a time: an image counts if fewer than k classes score above its own."""
    task.model.eval()
    hits, images = {}, 0
    for batch in batches:
        for image, label, valid in zip(batch["images"], batch["labels"].tolist(), batch["valid"], strict=True):
            if not valid:
                continue
            images += 1
            with torch.no_grad():
                logits = {name: row[0].double() for name, row in task.model(image[None]).logits.items()}
            scores = {f"_{name}": row.exp() / row.exp().sum() for name, row in logits.items()}
            scores[""] = sum(scores.values())
            for suffix, row in scores.items():
                above = sum(score > row[label].item() for score in row.tolist())
                for k in (1, 5):
                    hits[f"top{k}{suffix}"] = hits.get(f"top{k}{suffix}", 0) + (above < k)
    return {name: 100 * count / images for name, count in hits.items()}


@pytest.mark.parametrize(
    "unreadable", [(), (0, 4, 39), range(17, 26)], ids=["all", "some unreadable", "a batch unreadable"]
)
@pytest.mark.parametrize("num_classes", [2, 4, 5, 12])
@pytest.mark.parametrize("ablation", ["full", "sa_only"])
def test_accuracy(ablation, num_classes, unreadable):
    task = make_task(num_classes, ablation)
    batches = make_batches(num_classes, unreadable=unreadable)
    expected = accuracy_by_counting(task, batches)
    assert evaluate(task, batches) == pytest.approx(expected, abs=1e-4)
    if num_classes <= 5:
        assert expected["top5"] == 100
    if num_classes == 12 and ablation == "full":  # the branches differ, so a mix-up would show
        assert len({(expected[f"top1{suffix}"], expected[f"top5{suffix}"]) for suffix in ("_sa", "_glca", "")}) == 3


def test_evaluation_leaves_no_gradient_and_no_training_mode():
    task = make_task(4).train()
    evaluate(task, make_batches(4))
    assert not task.training and not task.model.training
    assert all(parameter.grad is None for parameter in task.parameters())


def test_without_a_readable_image_there_is_no_accuracy():
    with pytest.raises(InputError, match="test images"):
        evaluate(make_task(4), make_batches(4, unreadable=range(40)))


def test_logits_that_are_not_finite_are_no_accuracy():
    task = make_task(4)
    task.model.glca_head.bias.data[2] = math.nan
    with pytest.raises(TrainingDivergedError, match="logits"):
        evaluate(task, make_batches(4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ablation", ["full", "sa_glca", "sa_pwca"])
def test_training_step_is_the_formula_on_the_cross_entropy_of_every_branch(ablation, smoothing):
    task = make_task(6, ablation, label_smoothing=smoothing).train()
    with torch.no_grad():
        task.weighting.w.copy_(torch.tensor([0.5, -0.25, 1.0])[: len(task.model.branches)])
    (batch,) = make_batches(6, sizes=(7,))
    torch.manual_seed(5)  # PWCA's distractors
    step = task.training_step(batch)

    torch.manual_seed(5)
    logits = task.model(batch["images"]).logits
    assert set(logits) == set(task.model.branches)
    total = 0
    for w, name in zip(task.weighting.w.tolist(), task.model.branches, strict=True):
        log_probabilities = torch.log_softmax(logits[name], -1)
        target = F.one_hot(batch["labels"], 6) * (1 - smoothing) + smoothing / 6
        loss = -(target * log_probabilities).sum(-1).mean()  # the same label for all branches, PWCA's too
        assert step[f"loss_{name}"].item() == pytest.approx(loss.item(), rel=1e-5)
        assert step[f"w_{name}"].item() == w
        total += 0.5 * (math.exp(-w) * loss.item() + w)
    assert step["loss"].item() == pytest.approx(total, rel=1e-5)
    assert [name for name, value in step.items() if value.requires_grad] == ["loss"]


def test_the_baseline_trains_on_plain_cross_entropy():
    task = make_task(6, "sa_only").train()
    (batch,) = make_batches(6, sizes=(7,))
    step = task.training_step(batch)
    expected = F.cross_entropy(task.model.backbone(batch["images"]), batch["labels"])
    assert step["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.keys() == {"loss", "loss_sa", "accuracy"}
    assert not [name for name, _ in task.named_parameters() if "weighting" in name]


def test_training_accuracy_is_that_of_sa_and_glca_together():
    task = make_task(3).train()
    (batch,) = make_batches(3, sizes=(8,))
    torch.manual_seed(5)
    step = task.training_step(batch)
    torch.manual_seed(5)
    logits = task.model(batch["images"]).logits
    votes = logits["sa"].softmax(-1) + logits["glca"].softmax(-1)
    assert step["accuracy"].item() == pytest.approx(100 * (votes.argmax(-1) == batch["labels"]).sum().item() / 8)
