"""The benchmark's yardstick computes the same function as the model that it is compared with."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.textbook import TextbookDCAL
from dual_cross_attention.tasks import FGVCTask
from dual_cross_attention.training.optimizers import build_optimizer
from tests.helpers import random_images, tiny_model


def tiny(**kwargs):
    return tiny_model(sharpness=3, distractor_stream="sa", **kwargs)


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_outputs_and_gradients_are_those_of_the_model(task):
    model = tiny(task=task, local_ratio=0.25).double().train()
    textbook = TextbookDCAL(model).train()
    inputs, distractors, labels = random_images(4).double(), torch.tensor([2, 0, 3, 1]), torch.tensor([0, 1, 2, 3])

    def run(which):
        model.zero_grad()
        out = which(inputs, distractors)
        shares = {"sa": 1.0, "glca": 0.7, "pwca": 0.4}
        sum(share * F.cross_entropy(out.logits[branch], labels) for branch, share in shares.items()).backward()
        return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    (ours, our_gradients), (theirs, their_gradients) = run(model), run(textbook)
    for branch in ("sa", "glca", "pwca"):
        torch.testing.assert_close(ours.logits[branch], theirs.logits[branch])
        torch.testing.assert_close(ours.features[branch], theirs.features[branch])
    torch.testing.assert_close(ours.rollout, theirs.rollout)
    assert torch.equal(ours.local, theirs.local)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], atol=1e-10, rtol=1e-7)


def test_evaluation_has_sa_and_glca_as_the_model_has():
    model = tiny().eval()
    ours, theirs = model(random_images(2)), TextbookDCAL(model).eval()(random_images(2))
    assert theirs.logits.keys() == ours.logits.keys() == {"sa", "glca"}
    for branch, logits in theirs.logits.items():
        torch.testing.assert_close(logits, ours.logits[branch])


def test_a_task_trains_it_with_the_groups_of_the_model():
    model = tiny()
    groups = []
    for which in (model, TextbookDCAL(model)):
        task = FGVCTask(which).train()
        groups.append([len(group["params"]) for group in build_optimizer(task, 1e-3, 0.05).param_groups])
    assert groups[0] == groups[1]
    scalars = task({"images": random_images(4), "labels": torch.tensor([0, 1, 2, 3])})
    scalars["loss"].backward()
    assert {"loss_sa", "loss_glca", "loss_pwca"} <= scalars.keys()
    assert all(parameter.grad is not None for parameter in task.parameters())


def test_another_ablation_is_refused():
    with pytest.raises(ValueError, match="sa_glca"):
        TextbookDCAL(tiny(ablation="sa_glca"))
