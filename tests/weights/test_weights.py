"""Weights from files: each format, another size, another head, and every way they can be wrong."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from dual_cross_attention import InputError, create_model
from tests.helpers import TINY

SHARED = Path(os.environ.get("DCAL_SHARED", Path(__file__).parents[2].parent / "shared"))
DEIT_TINY = SHARED / "weights" / "deit_tiny_patch16_224.safetensors"


@pytest.fixture
def source():
    """A model of 11 classes at 32 x 32 whose weights are to be loaded elsewhere."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=11, img_size=32, **TINY)


def target(path, num_classes=11, img_size=32):
    torch.manual_seed(1)
    return create_model("vit_tiny_patch16_224", num_classes, img_size=img_size, pretrained=str(path), **TINY).backbone


@pytest.mark.parametrize("wrapped", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_each_format_loads(source, tmp_path, suffix, wrapped):
    path = tmp_path / f"weights{suffix}"
    state = source.state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapped: state} if wrapped else state, path)
    loaded = target(path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())


def test_a_head_of_another_width_is_left_out_and_logged(source, tmp_path, caplog):
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    caplog.set_level("INFO", logger="dual_cross_attention")
    model = target(tmp_path / "weights.safetensors", num_classes=5)
    assert model.head.weight.shape[0] == 5
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert "head.bias, head.weight" in caplog.text


def test_position_embedding_is_interpolated_to_another_size_and_aspect_ratio(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = target(tmp_path / "weights.safetensors", img_size=(64, 40))
    expected = resample_abs_pos_embed(source.pos_embed, new_size=(8, 5), old_size=(4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed, expected)


def test_any_other_mismatch_lists_the_keys(source, tmp_path):
    state = source.state_dict()
    state["blocks.0.extra"] = torch.zeros(3)
    state["norm.weight"] = torch.zeros(7)
    del state["blocks.1.attn.qkv.bias"]
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(InputError) as caught:
        target(tmp_path / "weights.safetensors")
    message = str(caught.value)
    assert "missing [blocks.1.attn.qkv.bias]" in message
    assert "unexpected [blocks.0.extra]" in message
    assert "norm.weight (7,) for (48,)" in message


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-was-here",)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("weights.pth", "wb") as file:
        pickle.dump({"head.weight": Hostile()}, file)
    with pytest.raises(InputError, match="cannot read weights"):
        target("weights.pth")
    torch.save({"head.weight": Hostile()}, "zipped.pth")
    with pytest.raises(InputError, match="cannot read weights"):
        target("zipped.pth")
    assert not Path("hostile-was-here").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "expected imagenet, none, or a file"),
        ("weights.txt", b"x", "expected one of .safetensors"),
        ("weights.safetensors", b"not a tensor file", "cannot read weights"),
        ("weights.pth", b"", "cannot read weights"),
        ("weights.npz", b"not an archive", "cannot read weights"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        target(tmp_path / name)
    assert "\n" not in str(caught.value)


def write_npz(model, path):
    """Google's JAX layout of a ViT (as ViT-B_16.npz), from a timm model."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    heads = model.blocks[0].attn.num_heads
    out = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    dim = model.embed_dim
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for j, norm in enumerate(("norm1", "norm2")):
            out[f"{theirs}LayerNorm_{2 * j}/scale"] = state[f"{ours}{norm}.weight"]
            out[f"{theirs}LayerNorm_{2 * j}/bias"] = state[f"{ours}{norm}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for j, name in enumerate(("query", "key", "value")):
            part = slice(j * dim, (j + 1) * dim)
            out[f"{attention}{name}/kernel"] = state[f"{ours}attn.qkv.weight"][part].T.reshape(dim, heads, -1)
            out[f"{attention}{name}/bias"] = state[f"{ours}attn.qkv.bias"][part].reshape(heads, -1)
        out[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(heads, -1, dim)
        out[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for j, name in enumerate(("fc1", "fc2")):
            out[f"{theirs}MlpBlock_3/Dense_{j}/kernel"] = state[f"{ours}mlp.{name}.weight"].T
            out[f"{theirs}MlpBlock_3/Dense_{j}/bias"] = state[f"{ours}mlp.{name}.bias"]
    np.savez(path, **out)


def test_googles_npz(source, tmp_path):
    write_npz(source, tmp_path / "ViT.npz")
    loaded, state = target(tmp_path / "ViT.npz").state_dict(), source.state_dict()
    for name, value in state.items():
        torch.testing.assert_close(loaded[name], value)
    other = target(tmp_path / "ViT.npz", num_classes=3)
    torch.testing.assert_close(other.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


@pytest.mark.skipif(not DEIT_TINY.is_file(), reason="needs the shared DeiT-Tiny weights")
def test_real_deit_tiny_at_448(caplog):
    caplog.set_level("INFO", logger="dual_cross_attention")
    model = create_model("deit_tiny_patch16_224", 200, img_size=448, pretrained=str(DEIT_TINY))
    assert model.backbone.pos_embed.shape == (1, 785, 192)
    assert "head.bias, head.weight" in caplog.text


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("We couldn't connect")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match="--weights none"):
        create_model("deit_tiny_patch16_224", 5, img_size=64, pretrained=True)
    with pytest.raises(InputError, match="no published weights"):
        create_model("vit_base_patch16_plus_240", 5, img_size=32, pretrained=True, depth=1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"depth": 1}, "2 blocks for 1"),
        ({"num_heads": 4}, r"query kernels \(48, 3, 16\) for \(48, 4, 12\)"),
        ({"init_values": 1e-5}, r"missing \[blocks.0.ls1.gamma"),
        ({"reg_tokens": 2}, r"missing \[reg_token"),
    ],
)
def test_an_npz_of_another_model_is_refused(source, tmp_path, other, message):
    """timm's reader would take the first three of these without a word."""
    write_npz(source, tmp_path / "ViT.npz")
    with pytest.raises(InputError, match=message):
        create_model("vit_tiny_patch16_224", 11, img_size=32, pretrained=str(tmp_path / "ViT.npz"), **{**TINY, **other})
