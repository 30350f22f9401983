"""The re-identification task: which feature goes to which loss, and metrics by the definition."""

import pytest
import torch
from torch.nn import functional as F

from dual_cross_attention import InputError, create_model
from dual_cross_attention.errors import TrainingDivergedError
from dual_cross_attention.inference.evaluation_loop import run_eval_steps
from dual_cross_attention.losses import ReIDLoss
from dual_cross_attention.tasks import ReIDTask, RetrievalSplit
from dual_cross_attention.tasks import reid as reid_module
from tests.helpers import TINY

TINY_TALL = TINY | {"img_size": (32, 16)}
QUERIES, GALLERY = 7, 23


def make_task(ablation="full", **options):
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", 4, task="reid", ablation=ablation, **TINY_TALL)
    generator = torch.Generator().manual_seed(2)
    identities = torch.randint(4, (QUERIES + GALLERY,), generator=generator)
    cameras = torch.randint(3, (QUERIES + GALLERY,), generator=generator)
    return ReIDTask(model, RetrievalSplit(identities, cameras, QUERIES), **options)


def evaluate(task, batches):
    run_eval_steps(task, batches)
    return task.compute_metrics()


def features_of(task, batches):
    run_eval_steps(task, batches)
    return task.gather_features()


def make_batches(unreadable=(), shuffled=False):
    """Test batches; indices are positions in the split, and labels are none that count."""
    images = torch.randn(QUERIES + GALLERY, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    positions = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    order = positions if shuffled else torch.arange(len(images))
    return [
        {
            "images": images[indices],
            "labels": torch.full_like(indices, -1),
            "indices": indices,
            "valid": torch.tensor([i not in unreadable for i in indices.tolist()]),
        }
        for indices in order.split(8)
    ]


def literal_metrics(features, identities, cameras, valid):
    """mAP and CMC in percent, one query and one gallery image at a time."""
    precisions, firsts = [], []
    for q in range(QUERIES):
        if not valid[q]:
            continue
        gallery = [
            g
            for g in range(QUERIES, QUERIES + GALLERY)
            if valid[g] and not (identities[g] == identities[q] and cameras[g] == cameras[q])
        ]
        gallery.sort(key=lambda g: float((features[q] - features[g]).square().sum()))
        hits = [rank for rank, g in enumerate(gallery, 1) if identities[g] == identities[q]]
        if hits:
            precisions.append(sum(found / rank for found, rank in enumerate(hits, 1)) / len(hits))
            firsts.append(hits[0])
    cmc = {f"rank{k}": 100 * sum(first <= k for first in firsts) / len(firsts) for k in (1, 5, 10)}
    return {"mAP": 100 * sum(precisions) / len(precisions)} | cmc


@pytest.mark.parametrize("ablation", ["full", "sa_only", "sa_glca", "sa_pwca"])
def test_loss_of_every_branch_is_on_its_own_feature_and_logits(ablation, monkeypatch):
    """The triplet sees the class token before the neck, cross-entropy what the classifier makes of it after."""
    task = make_task(ablation).train()
    outputs, forward = [], task.model.forward

    def watch(images, distractors, branches, _):
        outputs.append((forward(images, distractors, branches), distractors))
        return outputs[-1][0]

    monkeypatch.setattr(task.model, "forward", watch)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    given = task.training_step({"images": torch.randn(8, 3, 32, 16), "labels": labels})
    (out, distractors), loss = outputs[0], ReIDLoss()
    expected = {b: loss(out.logits[b], out.features[b], labels) for b in task.model.branches}
    for branch, value in expected.items():
        torch.testing.assert_close(given[f"loss_{branch}"], value.detach())
    total = 0.5 * sum(expected.values()) if len(expected) > 1 else expected["sa"]  # w starts at 0
    torch.testing.assert_close(given["loss"], total)
    assert (distractors is None) == (ablation in ("sa_only", "sa_glca"))
    if distractors is not None:
        assert (distractors != torch.arange(8)).all()


def test_distractors_are_drawn_by_identity(monkeypatch):
    task, seen = make_task().train(), []
    draw = reid_module.sample_distractors
    monkeypatch.setattr(reid_module, "sample_distractors", lambda *given: seen.append(given[2]) or draw(*given))
    labels = torch.tensor([0, 0, 1, 1])
    task({"images": torch.randn(4, 3, 32, 16), "labels": labels})
    assert torch.equal(seen[0], labels)


@pytest.mark.parametrize("ablation", ["full", "sa_only"])
@pytest.mark.parametrize("feature", ["before_neck", "after_neck"])
@pytest.mark.parametrize(("distance", "normalize"), [("euclidean", True), ("euclidean", False), ("cosine", False)])
def test_metrics_by_the_definition(ablation, feature, distance, normalize):
    task = make_task(ablation, feature=feature, distance=distance, normalize_features=normalize)
    for head in (task.model.sa_head, *([task.model.glca_head] if task.model.has_glca else [])):
        torch.nn.init.uniform_(head.neck.running_mean)
        torch.nn.init.uniform_(head.neck.running_var, 0.1, 2)
    unreadable = (2, 11)
    found = evaluate(task, make_batches(unreadable))
    images = torch.cat([batch["images"] for batch in make_batches()])
    valid = [i not in unreadable for i in range(len(images))]
    task.model.eval()
    for branch in (None, "sa", *(["glca"] if task.model.has_glca else [])):
        features = task.model.embed(images, branch=branch, after_neck=feature == "after_neck").double()
        if normalize or distance == "cosine":
            features = F.normalize(features, dim=1)
        expected = literal_metrics(features, task.split.identities, task.split.cameras, valid)
        for name, value in expected.items():
            assert found[name + (f"_{branch}" if branch else "")] == pytest.approx(value, abs=1e-4), (branch, name)


def test_order_of_the_batches_does_not_matter():
    """As when several processes share the test images."""
    task = make_task()
    assert evaluate(task, make_batches(shuffled=True)) == evaluate(task, make_batches())


def test_ranking_is_what_the_metrics_are_of():
    task = make_task()
    features = features_of(task, make_batches())
    identities, cameras = task.split.identities, task.split.cameras
    firsts, queries = [], []
    for query, gallery, distances in task.rank(features):
        kept = [
            g
            for g in range(QUERIES, QUERIES + GALLERY)
            if (identities[g], cameras[g]) != (identities[query], cameras[query])
        ]
        assert sorted(gallery.tolist()) == kept
        own = F.normalize(task.model.embed(make_batches()[0]["images"][query : query + 1]), dim=1)
        images = torch.cat([batch["images"] for batch in make_batches()])[gallery]
        expected = (F.normalize(task.model.embed(images), dim=1) - own).norm(dim=1)
        torch.testing.assert_close(distances.float().cpu(), expected, atol=1e-4, rtol=1e-4)
        queries.append(query)
        if (identities[kept] == identities[query]).any():
            firsts.append(bool(identities[gallery[0]] == identities[query]))
    assert queries == list(range(QUERIES))
    assert task.score(features)["rank1"] == pytest.approx(100 * sum(firsts) / len(firsts))


def test_errors_of_an_evaluation():
    task = make_task()
    with pytest.raises(InputError, match="test images"):
        evaluate(task, make_batches(unreadable=range(QUERIES + GALLERY)))
    with pytest.raises(InputError, match="query images"):
        evaluate(task, make_batches(unreadable=range(QUERIES)))
    with pytest.raises(InputError, match="gallery images"):
        evaluate(task, make_batches(unreadable=range(QUERIES, QUERIES + GALLERY)))
    torch.nn.init.constant_(task.model.backbone.norm.weight, float("nan"))
    with pytest.raises(TrainingDivergedError, match="features are NaN"):
        evaluate(task, make_batches())
