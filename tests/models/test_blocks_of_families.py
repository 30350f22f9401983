"""Freezing, LoRA and layer decay of a family whose blocks are not in `backbone.blocks`: a plain ViT's, in stages."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dual_cross_attention.backbones.plain_vit import PlainViT
from dual_cross_attention.models.lora import add_lora
from dual_cross_attention.training.layer_decay import layer_scales
from dual_cross_attention.weights.fitting import blocks_of
from tests.helpers import random_images, tiny_model

STAGES = ((0, 1), (2,))


class StagedViT(VisionTransformer):
    def group_matcher(self, coarse=False):
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [
                (r"^layers\.(\d+).downsample", (0,)),
                (r"^layers\.(\d+)\.\w+\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }


class Staged(PlainViT):
    def blocks(self, backbone):
        return [block for stage in backbone.layers for block in stage.blocks]

    def layer_parts(self, backbone):
        first, second, third = self.blocks(backbone)
        return [[first], [second], [backbone.layers[1].downsample, third]]


class Stage(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks, self.downsample = nn.ModuleList(blocks), downsample


def staged_and_plain():
    """The same model twice; the first has its blocks in two stages, with a layer between them that does nothing."""
    staged, plain = tiny_model("full"), tiny_model("full")
    backbone = staged.backbone
    between = nn.Identity(), nn.LayerNorm(backbone.embed_dim)
    stages = [Stage([backbone.blocks[i] for i in stage], down) for stage, down in zip(STAGES, between, strict=True)]
    del backbone.blocks
    backbone.layers, backbone.__class__, staged.family = nn.ModuleList(stages), StagedViT, Staged()
    return staged, plain


def plain_name(name):
    """Of a parameter in stages, that of the plain model; None: of the layer between the stages."""
    for place, (stage, block) in enumerate(((0, 0), (0, 1), (1, 0))):
        name = name.replace(f"layers.{stage}.blocks.{block}.", f"blocks.{place}.")
    return None if "downsample" in name else name


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, "all"])
def test_the_same_is_frozen(blocks):
    staged, plain = staged_and_plain()
    for model in (staged, plain):
        model.freeze(blocks)
        model.train()
    expected = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    for name, parameter in staged.named_parameters():
        of_stage_1 = blocks not in (3, "all")
        assert parameter.requires_grad == (expected[plain_name(name)] if plain_name(name) else of_stage_1), name
    modes = [block.training for block in plain.backbone.blocks]
    assert [block.training for block in staged.family.blocks(staged.backbone)] == modes
    assert staged.backbone.layers[1].downsample.training == modes[2]
    torch.manual_seed(3)
    ours = staged(random_images()).logits
    torch.manual_seed(3)
    for name, logits in plain(random_images()).logits.items():
        torch.testing.assert_close(ours[name], logits, rtol=0, atol=0)


def test_the_same_layers_get_lora():
    staged, plain = staged_and_plain()
    for model in (staged, plain):
        model.freeze(1)
        add_lora(model, 2, in_glca=False)
    assert {plain_name(name): each.requires_grad for name, each in staged.named_parameters() if plain_name(name)} == {
        name: each.requires_grad for name, each in plain.named_parameters()
    }


def test_layers_decay_from_the_last_block():
    staged, plain = staged_and_plain()
    scales, expected = layer_scales(staged, 0.5), layer_scales(plain, 0.5)
    assert expected["backbone.blocks.2.norm1.weight"] == expected["backbone.norm.weight"] == 0.5
    assert expected["backbone.blocks.0.norm1.weight"] == 0.125 and expected["backbone.cls_token"] == 0.0625
    assert scales.pop("backbone.layers.1.downsample.weight") == scales.pop("backbone.layers.1.downsample.bias") == 0.5
    assert {plain_name(name): scale for name, scale in scales.items()} == expected


def test_weights_see_the_blocks():
    staged, plain = staged_and_plain()
    assert blocks_of(staged.backbone) == staged.family.blocks(staged.backbone)
    assert blocks_of(plain.backbone) == list(plain.backbone.blocks)
