"""Layer-wise learning rate decay: which parameter learns at which rate."""

import re

import pytest
import torch
from timm.optim import param_groups_layer_decay

from dual_cross_attention import create_model
from dual_cross_attention.tasks import FGVCTask, ReIDTask, RetrievalSplit
from dual_cross_attention.training.optimizers import build_optimizer, build_schedule

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 3}
TOP = 4  # the stem is layer 0, the blocks are 1 to 3


def make_task(kind, backbone="deit_tiny_distilled_patch16_224"):
    if kind == "fgvc":
        return FGVCTask(create_model(backbone, 5, img_size=28 if "14" in backbone else 32, **TINY))
    split = RetrievalSplit(torch.zeros(2), torch.zeros(2), 1)
    return ReIDTask(create_model("vit_tiny_patch16_224", 5, task="reid", img_size=32, **TINY), split)


def layer_of(name):
    """By the parameter's name, read as BEiT numbers layers."""
    name = name.removeprefix("model.")
    if found := re.match(r"backbone\.blocks\.(\d+)\.", name):
        return int(found[1]) + 1
    if re.match(r"backbone\.(cls_token|pos_embed|dist_token|reg_token|patch_embed|norm_pre)", name):
        return 0
    return TOP - 1 if name.startswith("backbone.norm.") else TOP


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("kind", "backbone"),
    [("fgvc", "deit_tiny_distilled_patch16_224"), ("fgvc", "vit_small_patch14_reg4_dinov2"), ("reid", "")],
)
def test_the_rate_falls_from_layer_to_layer(kind, backbone, optimizer):
    """GLCA and heads have the full rate; biases and w keep their factors, and weight decay is as without."""
    task = make_task(kind, backbone)
    given = {"lr": 0.5, "weight_decay": 0.05, "kind": optimizer, "bias_lr_factor": 2.0, "w_lr_factor": 0.1}
    built = build_optimizer(task, **given, layer_decay=0.5)
    groups = {id(parameter): group for group in built.param_groups for parameter in group["params"]}
    plain = {id(p): group for group in build_optimizer(task, **given).param_groups for p in group["params"]}
    seen = set()
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in groups
            continue
        factor = 0.1 if name == "weighting.w" else 2.0 if name.endswith("bias") else 1.0
        assert groups[id(parameter)]["lr_scale"] == pytest.approx(factor * 0.5 ** (TOP - layer_of(name))), name
        assert groups[id(parameter)]["weight_decay"] == plain[id(parameter)]["weight_decay"]
        seen.add(layer_of(name))
    assert seen == set(range(TOP + 1))
    assert built.param_groups[0]["lr_scale"] == 1.0  # what a run reports as its learning rate


FAMILIES = {
    "deit_tiny_distilled_patch16_224": (32, TINY),
    "vit_base_patch16_siglip_224": (32, TINY),  # an attention pool
    "vit_tiny_r_s16_p8_224": (64, TINY),
    "eva02_tiny_patch14_224": (28, TINY),
    "vit_small_patch16_rope_mixed_ape_224": (32, TINY),  # learned frequencies of rotary positions
    "swin_tiny_patch4_window7_224": (56, {"embed_dim": 24, "depths": (1, 2, 1), "num_heads": (1, 2, 3)}),
    "cait_xxs24_224": (32, TINY),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_are_those_of_timm(name):
    size, options = FAMILIES[name]
    model = create_model(name, 5, img_size=size, **options)
    theirs = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(model.backbone, layer_decay=0.7)
        for parameter in group["params"]
    }
    task = FGVCTask(model)
    groups = build_optimizer(task, 0.5, 0.05, layer_decay=0.7).param_groups
    ours = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    for parameter in model.backbone.parameters():
        assert ours[id(parameter)] == pytest.approx(theirs[id(parameter)])


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_small_patch16_rope_mixed_ape_224"])
def test_what_timm_has_in_no_layer_has_the_full_rate(name):
    """Pools, frequencies of rotary positions, and what DCAL adds: GLCA, necks, embeddings of cameras."""
    size, options = FAMILIES[name]
    model = create_model(name, 5, task="reid", img_size=size, cameras=3, **options)
    split = RetrievalSplit(torch.zeros(2), torch.zeros(2), 1)
    groups = build_optimizer(ReIDTask(model, split), 0.5, 0.05, layer_decay=0.7).param_groups
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    full = {each for each, parameter in model.named_parameters() if scales.get(id(parameter)) == 1.0}
    wanted = ("backbone.attn_pool.", "backbone.rope.", "glca", "sa_head", "side_information")
    assert full == {
        each for each, parameter in model.named_parameters() if each.startswith(wanted) and parameter.requires_grad
    }
    assert any(each.startswith(wanted[:2]) for each in full) and "side_information.embedding" in full


def test_the_schedule_scales_every_group():
    """From the first update on, in warm-up, cosine and at the floor."""
    optimizer = build_optimizer(make_task("fgvc"), lr=0.1, weight_decay=0.05, layer_decay=0.5)
    schedule = build_schedule(optimizer, 10, 4, 1, 0.001)
    for update in range(41):
        rates = {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}
        assert len(rates) == TOP + 1
        assert all(rate == pytest.approx(scale * rates[1.0]) for scale, rate in rates.items())
        schedule.step_update(update + 1)


def test_without_it_the_groups_are_as_they_were():
    assert {group["lr_scale"] for group in build_optimizer(make_task("fgvc"), 0.5, 0.05).param_groups} == {1.0}
