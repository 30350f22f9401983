"""Position embeddings: untouched on the same grid, resampled from the true one otherwise, or refused."""

import argparse
import logging

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from dual_cross_attention import InputError, create_model
from dual_cross_attention.backbones.create import create_backbone
from dual_cross_attention.weights import fetch_imagenet_weights, loading
from tests.weights.test_weights import TINY, write_npz

VIT = "vit_tiny_patch16_224"


def cubic(x):
    """Keys' kernel with a = -0.5, as antialiased bicubic interpolation takes it."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def triangle(x):
    return np.clip(1 - np.abs(x), 0, None)


def resized(grid, size, antialias=True, kernel=cubic):
    """(rows, columns, D) → (*size, D) in float64, from the definition: one axis after the other."""
    out = np.asarray(grid, dtype=np.float64)
    for axis, length in enumerate(size):
        before = out.shape[axis]
        scale = before / length
        widened = max(scale, 1) if antialias else 1
        weights = np.zeros((length, before))
        for i in range(length):
            center = scale * (i + 0.5) - 0.5
            if antialias:
                weights[i] = kernel((np.arange(before) - center) / widened)
            else:  # what lies beyond the border is the border's
                for j in range(int(np.floor(center)) - 2, int(np.floor(center)) + 4):
                    weights[i, min(max(j, 0), before - 1)] += kernel(np.array(j - center))
        weights /= weights.sum(1, keepdims=True)
        out = np.moveaxis(np.tensordot(weights, out, (1, axis)), 0, axis)
    return out


def embedding_of(model, grid, prefix=1):
    values = model.pos_embed.detach().numpy()[0]
    return values[:prefix], values[prefix:].reshape(*grid, -1)


@pytest.fixture
def write(tmp_path):
    """A ViT with patches of 8 pixels at an image size, as a file."""

    def make(img_size, suffix=".safetensors", name=VIT, **more):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=5, img_size=img_size, **TINY, **more)
        with torch.no_grad():
            model.pos_embed.normal_()
        path = tmp_path / f"{img_size}{suffix}".replace(" ", "")
        write_npz(model, path) if suffix == ".npz" else save_file(model.state_dict(), path)
        return model, path

    return make


def load(path, img_size, name=VIT, trained_at=None, **more):
    torch.manual_seed(1)
    options = {**TINY, **more, "weights_img_size": trained_at} if trained_at else {**TINY, **more}
    return create_model(name, 5, img_size=img_size, pretrained=str(path), **options).backbone


def test_the_reported_case(tmp_path):
    """288 x 512 is 18×32 = 24×24 patches, under a name that says 384: it was resampled at the very same size."""
    source = timm.create_model("vit_tiny_patch16_384", img_size=(288, 512), num_classes=5, depth=2)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    options = {"img_size": (288, 512), "depth": 2, "pretrained": str(tmp_path / "weights.safetensors")}
    with pytest.raises(InputError, match=r"24×24.* 18×32.*--weights_img_size 384 384 or 288 512"):
        create_model("vit_tiny_patch16_384", 5, **options)
    model = create_model("vit_tiny_patch16_384", 5, weights_img_size=(288, 512), **options)
    assert torch.equal(model.backbone.pos_embed, source.pos_embed)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_square_count_that_is_also_the_rectangular_models_is_refused(write, suffix):
    """4×9 = 6×6: timm took every such file for a square one and resampled it."""
    source, path = write((32, 72), suffix)
    with pytest.raises(InputError, match=r"6×6.* 4×9.*--weights_img_size 48 48 or 32 72"):
        load(path, (32, 72))
    assert torch.equal(load(path, (32, 72), trained_at=(32, 72)).pos_embed, source.pos_embed)
    first, grid = embedding_of(source, (6, 6))
    kernel = {"antialias": False, "kernel": triangle} if suffix == ".npz" else {}
    squares = embedding_of(load(path, (32, 72), trained_at=48), (4, 9))
    np.testing.assert_array_equal(squares[0], first)
    np.testing.assert_allclose(squares[1], resized(grid, (4, 9), **kernel), atol=2e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_from_one_rectangle_to_another(write, caplog, suffix):
    """As 256x128 → 384x128 in re-identification, which ended in a shape of [1, 11, 11, -1]."""
    source, path = write((64, 32), suffix)
    with pytest.raises(InputError, match=r"32 position tokens.*--weights_img_size"):
        load(path, (96, 32))
    caplog.set_level("INFO", logger="dual_cross_attention")
    first, grid = embedding_of(source, (8, 4))
    found = embedding_of(load(path, (96, 32), trained_at=(64, 32)), (12, 4))
    kernel = {"antialias": False, "kernel": triangle} if suffix == ".npz" else {}
    np.testing.assert_array_equal(found[0], first)
    np.testing.assert_allclose(found[1], resized(grid, (12, 4), **kernel), atol=2e-5)
    assert "position embedding 8×4 → 12×4" in caplog.messages


def test_the_oracle_is_timms_resampling(write):
    source, _ = write((64, 32))
    theirs = resample_abs_pos_embed(source.pos_embed, [5, 9], [8, 4])[0, 1:].detach().numpy().reshape(5, 9, -1)
    np.testing.assert_allclose(theirs, resized(embedding_of(source, (8, 4))[1], (5, 9)), atol=2e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_count_that_is_no_square_and_the_models_is_untouched_aloud(write, caplog, suffix):
    source, path = write((64, 32), suffix)
    assert torch.equal(load(path, (64, 32)).pos_embed, source.pos_embed)
    (said,) = (record for record in caplog.records if "position embedding" in record.message)
    assert said.levelno == logging.WARNING and "8×4, unchanged, assumed" in said.message
    turned = embedding_of(load(path, (64, 32), trained_at=(32, 64)), (8, 4))[1]
    kernel = {"antialias": False, "kernel": triangle} if suffix == ".npz" else {}
    expected = resized(embedding_of(source, (4, 8))[1], (8, 4), **kernel)
    np.testing.assert_allclose(turned, expected, atol=2e-5)


def test_a_size_that_does_not_account_for_the_tokens_is_refused(write):
    _, path = write(32)
    with pytest.raises(InputError, match=r"--weights_img_size .*40x40.*5×5.*16 position tokens"):
        load(path, 32, trained_at=40)


def test_same_square_grid_is_untouched_and_another_is_resampled(write, caplog):
    source, path = write(32)
    assert torch.equal(load(path, 32).pos_embed, source.pos_embed)
    caplog.set_level("INFO", logger="dual_cross_attention")
    found = embedding_of(load(path, (64, 24)), (8, 3))
    np.testing.assert_allclose(found[1], resized(embedding_of(source, (4, 4))[1], (8, 3)), atol=2e-5)
    assert "position embedding 4×4 → 8×3" in caplog.messages


@pytest.mark.parametrize(
    ("name", "prefix", "more"),
    [
        ("deit_tiny_distilled_patch16_224", 2, {}),
        ("deit3_small_patch16_224", 0, {}),  # no position of the class token
        (VIT, 5, {"reg_tokens": 4}),
        (VIT, 0, {"reg_tokens": 4, "no_embed_class": True}),
        ("flexivit_small", 0, {}),
    ],
)
def test_prefix_tokens_are_kept_and_the_rest_resampled(write, name, prefix, more):
    source, path = write((64, 32), name=name, **more)
    first, grid = embedding_of(source, (8, 4), prefix)
    same = load(path, (64, 32), name, (64, 32), **more)
    assert torch.equal(same.pos_embed, source.pos_embed)
    found = embedding_of(load(path, (32, 48), name, (64, 32), **more), (4, 6), prefix)
    np.testing.assert_array_equal(found[0], first)
    np.testing.assert_allclose(found[1], resized(grid, (4, 6)), atol=2e-5)


def test_dinov2s_own_layout_with_registers(write, tmp_path):
    """Official files have a position of the class token, which timm's model adds to the token itself."""
    source, _ = write((64, 32), reg_tokens=4, no_embed_class=True)
    state = source.state_dict()
    first = torch.randn(1, 1, 48)
    state["register_tokens"], state["mask_token"] = state.pop("reg_token"), torch.zeros(1, 48)
    state["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
    torch.save(state, tmp_path / "dinov2.pth")
    more = {"reg_tokens": 4, "no_embed_class": True}
    model = load(tmp_path / "dinov2.pth", (64, 32), trained_at=(64, 32), **more)
    assert torch.equal(model.pos_embed, source.pos_embed)
    torch.testing.assert_close(model.cls_token, source.cls_token + first)


def test_patches_of_another_size_count_for_the_grid(write):
    """A file with patches of 8 pixels at 64x32 has 8×4 of them, whatever the patches of the model are."""
    source, path = write((64, 32))
    found = load(path, (64, 32), trained_at=(64, 32), patch_size=16)
    expected = resized(embedding_of(source, (8, 4))[1], (4, 2))
    np.testing.assert_allclose(embedding_of(found, (4, 2))[1], expected, atol=2e-5)


def test_timms_config_beside_a_file_says_the_size(write):
    source, path = write((32, 72))
    (path.parent / "config.json").write_text('{"model_args": {"img_size": [32, 72]}, "pretrained_cfg": {}}')
    assert torch.equal(load(path, (32, 72)).pos_embed, source.pos_embed)


def test_arguments_of_timms_training_script_say_the_size_and_the_normalization(write):
    source, path = write((32, 72))
    arguments = argparse.Namespace(input_size=[3, 32, 72], img_size=None, mean=[0.1, 0.2, 0.3], std=(0.4, 0.5, 0.6))
    torch.save({"state_dict": source.state_dict(), "args": arguments}, path.with_suffix(".pth"))
    model = load(path.with_suffix(".pth"), (32, 72))
    assert torch.equal(model.pos_embed, source.pos_embed)
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_fetched_weights_have_the_grid_of_their_model(write, monkeypatch):
    source, _ = write((32, 72))
    monkeypatch.setattr(loading.timm, "is_model_pretrained", lambda name: True)
    backbone = create_backbone(VIT, 5, (32, 72), **TINY)
    monkeypatch.setattr(loading.timm, "create_model", lambda name, pretrained: source)
    fetch_imagenet_weights(backbone, VIT)
    assert torch.equal(backbone.pos_embed, source.pos_embed)


@pytest.mark.parametrize("trained_at", [32, None])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_the_patch_size_is_that_of_the_file_not_of_the_backbone(write, caplog, suffix, trained_at):
    """Patches of 8 pixels at 32 x 32 are 4×4, whatever the patches are resampled to."""
    source, path = write(32, suffix)
    caplog.set_level("INFO", logger="dual_cross_attention")
    first, grid = embedding_of(source, (4, 4))
    found = embedding_of(load(path, 32, trained_at=trained_at, patch_size=16), (2, 2))
    kernel = {"antialias": False, "kernel": triangle} if suffix == ".npz" else {}
    np.testing.assert_array_equal(found[0], first)
    np.testing.assert_allclose(found[1], resized(grid, (2, 2), **kernel), atol=2e-5)
    assert "position embedding 4×4 → 2×2" in caplog.messages


def test_an_npz_with_a_patch_embedding_of_other_axes_is_refused(write):
    _, path = write(32, ".npz")
    arrays = dict(np.load(path))
    arrays["embedding/kernel"] = arrays["embedding/kernel"].reshape(-1, 48)
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"embedding/kernel.*\(192, 48\)"):
        load(path, 32)


@pytest.mark.parametrize("layout", ["clip", "flat"])
def test_the_given_size_counts_in_layouts_that_timm_converts(tmp_path, layout):
    """Their patch embedding has another name or shape: the size that was given was ignored, and 16 tokens were 4×4."""
    torch.manual_seed(0)
    name = "vit_base_patch16_clip_224" if layout == "clip" else VIT
    source = timm.create_model(name, num_classes=5, img_size=(16, 64), **TINY)
    torch.nn.init.normal_(source.pos_embed)
    state = source.state_dict()
    kernel = state.pop("patch_embed.proj.weight")
    if layout == "flat":
        state["patch_embed.proj.weight"] = kernel.flatten(1)
    else:
        state = {as_clip(name): value for name, value in state.items() if "head" not in name}
        state["visual.conv1.weight"] = kernel
        state["visual.class_embedding"] = state["visual.class_embedding"].flatten()
        state["visual.positional_embedding"] = state["visual.positional_embedding"][0]
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "a.safetensors")
    first, grid = embedding_of(source, (2, 8))
    found = embedding_of(load(tmp_path / "a.safetensors", 32, name, trained_at=(16, 64)), (4, 4))
    np.testing.assert_array_equal(found[0], first)
    np.testing.assert_allclose(found[1], resized(grid, (4, 4)), atol=2e-5)


def as_clip(name):
    """OpenAI's name of a tensor of timm's, in an image tower under `visual.`."""
    for ours, theirs in (
        ("cls_token", "class_embedding"), ("pos_embed", "positional_embedding"), ("norm_pre", "ln_pre"),
        ("blocks.", "transformer.resblocks."), (".norm", ".ln_"), (".qkv.", ".in_proj_"),
        (".attn.proj", ".attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ):  # fmt: skip
        name = name.replace(ours, theirs)
    return f"visual.{'ln_post' + name[4:] if name.startswith('norm.') else name}"
