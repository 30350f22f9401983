"""Weights of pooled models, hybrids and DINOv3: mapped, or refused; never dropped without a line."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch.testing import assert_close

from dual_cross_attention import InputError, create_model

SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 2}
CAIT, SIGLIP, GAP, EVA, DINO = (
    "cait_xxs24_224",
    "vit_base_patch16_siglip_224",
    "vit_medium_patch16_reg4_gap_256",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
)


def write(path, name, **kwargs):
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=5, **SMALL | kwargs)
    save_file(model.state_dict(), path)
    return model


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (CAIT, 96),
        (SIGLIP, 96),
        (GAP, 96),
        (EVA, 84),
        (DINO, 96),
        ("vit_base_r50_s16_224", 96),
        ("vit_small_r26_s32_224", 96),
    ],
)
def test_a_file_fills_its_own_backbone_at_another_size(tmp_path, name, size):
    source = write(tmp_path / "a.safetensors", name)
    model = create_model(name, 5, img_size=size, pretrained=str(tmp_path / "a.safetensors"), **SMALL).eval()
    state = model.backbone.state_dict()
    for key, value in source.state_dict().items():
        if key != "pos_embed":
            assert torch.equal(state[key], value), key
    if name == CAIT:  # timm cannot resize it; its position embedding has no class token
        source = timm.create_model(name, num_classes=5, img_size=size, **SMALL)
        source.load_state_dict(state)
        grid = write(tmp_path / "b.safetensors", name).pos_embed
        assert_close(state["pos_embed"], resample_abs_pos_embed(grid, [size // 16] * 2, num_prefix_tokens=0))
    else:
        source.set_input_size(img_size=(size, size))
    images = torch.randn(2, 3, size, size)
    assert_close(model.predict(images, branch="sa"), source.eval()(images).softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("of_file", "options", "word"),
    [
        (SIGLIP, {"global_pool": "avg", "fc_norm": False}, "attention pool"),
        (SIGLIP.replace("siglip", "siglip_gap"), {"backbone": SIGLIP}, "attention pool"),
        (GAP, {"global_pool": "avg", "fc_norm": False}, "average pooling"),
        (EVA, {"global_pool": "token"}, "average pooling"),
        (DINO + "_qkvb", {"backbone": DINO}, "do not fit"),
        (CAIT, {"backbone": "deit_tiny_patch16_224"}, "a file of a CaiT"),
        ("deit_tiny_patch16_224", {"backbone": CAIT}, "the backbone is a CaiT"),
        (CAIT, {"depth_token_only": 1}, "a file of a CaiT"),
    ],
)
def test_a_pool_that_the_other_has_not_is_refused(tmp_path, of_file, options, word):
    write(tmp_path / "a.safetensors", of_file)
    options = {"backbone": of_file, "img_size": 112, **options}
    with pytest.raises(InputError, match=word):
        create_model(num_classes=5, pretrained=str(tmp_path / "a.safetensors"), **SMALL, **options)


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_biases_of_metas_dinov3_are_taken_or_refused(tmp_path, bias, capsys):
    """timm leaves them out of a backbone without; they may be left out only where they are 0, those of keys always."""
    source = timm.create_model(DINO + "_qkvb", num_classes=0, **SMALL)
    state = {"storage_tokens": source.reg_token.detach()}
    for name, value in source.state_dict().items():
        name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        if name.endswith("q_bias"):
            state[name.replace("q_bias", "qkv.bias")] = torch.cat([torch.full((48,), each) for each in (bias, 9, bias)])
        elif not name.endswith("v_bias") and name != "reg_token":
            state[name] = value
    torch.save(state, tmp_path / "a.pth")
    options = {"img_size": 64, "pretrained": str(tmp_path / "a.pth"), **SMALL}
    model = create_model(DINO + "_qkvb", 5, **options)
    assert torch.equal(model.backbone.blocks[1].attn.v_bias, torch.full((48,), bias))
    if bias:
        with pytest.raises(InputError, match="_qkvb"):
            create_model(DINO, 5, **options)
    else:
        create_model(DINO, 5, **options)
    assert "q_bias" not in capsys.readouterr().out  # timm prints each one


def test_glcas_pool_of_a_run_is_taken(tmp_path):
    torch.manual_seed(2)
    run = create_model(SIGLIP, 5, img_size=64, **SMALL)
    save_file({name: value.clone() for name, value in run.state_dict().items()}, tmp_path / "run.safetensors")
    model = create_model(SIGLIP, 7, img_size=64, pretrained=str(tmp_path / "run.safetensors"), **SMALL)
    for name, value in run.glca_pool.state_dict().items():
        assert torch.equal(model.glca_pool.state_dict()[name], value)
