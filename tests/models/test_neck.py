"""The BN neck: where it stands, what it keeps, and which features it is between."""

import pytest
import torch
from torch.nn import functional as F

from dual_cross_attention import InputError, create_model
from dual_cross_attention.models.neck import NeckClassifier
from tests.helpers import TINY

TINY_TALL = TINY | {"img_size": (32, 16)}


def reid_model(**options):
    torch.manual_seed(0)
    return create_model("vit_tiny_patch16_224", 5, task="reid", **TINY_TALL, **options)


def normalized(feature, eps=1e-5):
    """Batch normalization from its definition, without scale and shift."""
    mean, variance = feature.mean(0), feature.var(0, unbiased=False)
    return (feature - mean) / (variance + eps).sqrt()


def test_classifier_has_no_bias_and_the_neck_no_shift():
    head = NeckClassifier(8, 3)
    assert {name for name, parameter in head.named_parameters() if parameter.requires_grad} == {
        "neck.weight",
        "classifier.weight",
    }
    assert not head.neck.bias.any()


def test_every_branch_goes_through_the_neck_of_its_classifier():
    model = reid_model().double().train()
    out = model(torch.randn(6, 3, 32, 16, dtype=torch.float64))
    heads = {"sa": model.sa_head, "pwca": model.sa_head, "glca": model.glca_head}
    assert set(out.logits) == set(out.features) == set(heads)
    for branch, head in heads.items():
        # Each branch by the statistics of its own batch.
        expected = normalized(out.features[branch]) * head.neck.weight @ head.classifier.weight.T
        torch.testing.assert_close(out.logits[branch], expected)


def test_running_statistics_are_those_of_sa_alone():
    model = reid_model(ablation="sa_pwca").train()
    out = model(torch.randn(6, 3, 32, 16))
    torch.testing.assert_close(model.sa_head.neck.running_mean, 0.1 * out.features["sa"].mean(0))
    assert model.sa_head.neck.num_batches_tracked == 1


def test_features_are_class_tokens_from_before_the_neck():
    """out.features are what the norm gives: timm's own forward without a head is the check for SA."""
    model = reid_model().eval()
    images = torch.randn(3, 3, 32, 16)
    with torch.no_grad():
        expected = model.backbone(images)  # timm's model with num_classes=0 returns the pooled class token
    torch.testing.assert_close(model.embed(images, branch="sa"), expected)
    both = model.embed(images)
    assert both.shape == (3, 96)
    torch.testing.assert_close(both[:, :48], expected)
    torch.testing.assert_close(both[:, 48:], model.embed(images, branch="glca"))


def test_features_after_the_neck_use_running_statistics():
    model = reid_model().eval()
    for head in (model.sa_head, model.glca_head):
        torch.nn.init.uniform_(head.neck.running_mean)
        torch.nn.init.uniform_(head.neck.running_var, 0.5, 2)
        torch.nn.init.uniform_(head.neck.weight, 0.5, 2)
    images = torch.randn(2, 3, 32, 16)
    parts = []
    for branch, head in (("sa", model.sa_head), ("glca", model.glca_head)):
        bn, feature = head.neck, model.embed(images, branch=branch)
        parts.append((feature - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight)
        torch.testing.assert_close(model.embed(images, branch=branch, after_neck=True), parts[-1])
    torch.testing.assert_close(model.embed(images, after_neck=True), torch.cat(parts, 1))


def test_defaults_of_the_task():
    model = reid_model()
    assert model.local_ratio == 0.3
    assert model.backbone.num_classes == 0  # loads into timm, and back, without a head
    only = reid_model(ablation="sa_only")
    assert {name.partition(".")[0] for name, _ in only.named_parameters()} == {"backbone", "sa_head"}


def test_what_a_model_is_not_for_is_refused():
    images = torch.randn(2, 3, 32, 16)
    with pytest.raises(InputError, match="use embed"):
        reid_model().eval().predict(images)
    fgvc = create_model("vit_tiny_patch16_224", 5, **TINY_TALL).eval()
    with pytest.raises(InputError, match="task 'reid'"):
        fgvc.embed(images, after_neck=True)


def test_gradients_reach_every_part():
    model = reid_model().train()
    out = model(torch.randn(6, 3, 32, 16))
    labels = torch.arange(6) % 5
    sum(F.cross_entropy(out.logits[b], labels) + out.features[b].square().mean() for b in out.logits).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
