"""Swin Transformers against timm's own code, with norms, biases and tables of relative positions of order 1."""

import json
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resize_rel_pos_bias_table
from torch.testing import assert_close

from dual_cross_attention import InputError, create_model, explain, load_model
from dual_cross_attention.backbones.swin import Swin
from dual_cross_attention.backbones.windows import Windows
from dual_cross_attention.configs.recipes import read_config
from dual_cross_attention.explanation.maps import attention_maps
from dual_cross_attention.explanation.matching import match_scores
from dual_cross_attention.models.lora import add_lora
from dual_cross_attention.training.layer_decay import layer_scales
from tests.backbones.oracles import SMALL_SWIN as SMALL
from tests.backbones.oracles import SWIN, TWO_STAGES, assert_pwca_is_that_of_separate_passes, glca_rows, randomize
from tests.backbones.oracles import SWIN_NAMES as NAMES

BY_CASE = pytest.mark.parametrize("case", SWIN, ids=str)
MULTIPLE = SWIN[2:]
BY_WINDOWS = pytest.mark.parametrize("case", MULTIPLE, ids=str)


def fused(reference):
    """timm computes by scaled_dot_product_attention, which `run_timm` replaces."""
    for stage in reference.layers:
        for block in stage.blocks:
            block.attn.fused_attn = True
    return reference


class Joint:
    """Stands in for fused attention in timm: softmaxes written out, with a bias, jointly over the distractor's windows.

    Args:
        distractors: (B,) whose keys and values join; None: the image's own alone.
    """

    def __init__(self, distractors=None):
        self.distractors, self.weights = distractors, []

    def __call__(self, query, key, value, attn_mask=None, dropout_p=0.0):
        scores = torch.einsum("bhnd,bhmd->bhnm", query, key) / query.shape[-1] ** 0.5 + attn_mask
        if self.distractors is not None:
            windows = len(query) // len(self.distractors)
            rows = (self.distractors[:, None] * windows + torch.arange(windows)).flatten()
            others = torch.einsum("bhnd,bhmd->bhnm", query, key[rows]) / query.shape[-1] ** 0.5 + attn_mask
            scores, value = torch.cat([scores, others], -1), torch.cat([value, value[rows]], 2)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        weights = weights / weights.sum(-1, keepdim=True)
        self.weights.append(weights.detach())
        return weights @ value


def run_written_out(monkeypatch, run, distractors=None):
    joint = Joint(distractors)
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", joint)
        return run(), joint.weights


def tokens_of_windows(block):
    """By loops: which token each slot of each window holds, -1 for padding."""
    (rows, columns), (height, width), shift = block.input_resolution, block.window_size, block.shift_size
    found = []
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            slots = [(top + i, left + j) for i in range(height) for j in range(width)]
            found.append(
                [
                    (r + shift[0]) % rows * columns + (c + shift[1]) % columns if r < rows and c < columns else -1
                    for r, c in slots
                ]
            )
    return found


@BY_CASE
def test_sa_is_timms_own_forward(case):
    """At the size of the weights, another one, and a rectangle; with shifted and with padded windows."""
    for size in range(3):
        model = case.create(size, ablation="sa_only").eval()
        images, reference = case.images(size, 2), case.reference(model, size)
        with torch.no_grad():
            out, expected = model(images), reference(images)
            assert expected.abs().mean() > 0.1
            assert_close(out.logits["sa"], expected)
            assert_close(out.features["sa"], reference.forward_head(reference.forward_features(images), True))


@BY_CASE
def test_rollout_is_the_explicit_product_over_the_last_stage(case, monkeypatch):
    model = case.create(ablation="sa_glca").eval()
    reference, images = fused(case.reference(model)), case.images(batch=2)
    with torch.no_grad():
        out = model(images)
        _, layers = run_written_out(monkeypatch, lambda: reference(images))
    blocks = reference.layers[-1].blocks
    tokens = int(np.prod(blocks[0].input_resolution))
    product = torch.eye(tokens, dtype=torch.float64)
    for block, weights in zip(blocks, layers[-len(blocks) :], strict=True):
        full = torch.zeros(2, tokens, tokens, dtype=torch.float64)
        slots = tokens_of_windows(block)
        of_windows = weights.mean(1).unflatten(0, (2, len(slots)))
        for window, held in enumerate(slots):
            for i, row in enumerate(held):
                for j, column in enumerate(held):
                    if row >= 0 and column >= 0:
                        full[:, row, column] = of_windows[:, window, i, j]
        product = (0.5 * full + 0.5 * torch.eye(tokens)) @ product
    expected = product.mean(1)  # of all tokens, 1/N each
    assert expected.std() > 1e-5
    assert_close(out.rollout, expected.float(), atol=1e-6, rtol=0)
    maps = attention_maps(model, images)
    assert_close(maps.rollout.flatten(1), out.rollout, atol=1e-6, rtol=0) and maps.layers.shape[1] == len(blocks)


@BY_CASE
@pytest.mark.parametrize("checkpointing", [False, True])
def test_pwca_and_gradients_are_those_of_separate_passes(case, checkpointing, monkeypatch):
    """The distractor's keys of the same window, with the same bias and mask, in one softmax written out."""
    assert_pwca_is_that_of_separate_passes(case, checkpointing, run_written_out, monkeypatch, fused)


@BY_CASE
@pytest.mark.parametrize("number", [1, 2])
def test_glca_asks_all_tokens_of_the_last_stage(case, number):
    """Of timm's block over the whole grid as one window, the rows of the local tokens."""
    model = case.create(ablation="sa_glca", glca_blocks=number).eval()
    reference, images = case.reference(model), case.images()
    rows, columns = reference.layers[-1].output_resolution
    with torch.no_grad():
        out = model(images)
        tokens = reference.layers(reference.patch_embed(images)).flatten(1, 2)
        assert all(each.block.window_size == (rows, columns) for each in model.glca_blocks)
        assert all(each.block.attn_mask is None for each in model.glca_blocks)

        def run(block, _, tokens):
            return block(tokens.unflatten(1, (rows, columns))).flatten(1, 2)

        after = glca_rows(model, tokens, out.local, run)
        expected = model.glca_norm(after).mean(1)
        assert_close(out.features["glca"], expected)
        assert_close(model.embed(images, branch="glca"), expected)


def test_glcas_copy_gets_its_table_as_timm_resizes_it():
    model = create_model(NAMES[0], 5, img_size=48, glca_init="last_block", ablation="sa_glca", **TWO_STAGES)
    last = model.backbone.layers[-1].blocks[-1]
    assert last.window_size == (3, 3) and model.glca_block.block.window_size == (6, 6)
    expected = resize_rel_pos_bias_table(last.attn.relative_position_bias_table.detach(), (6, 6), (121, 4), (3, 3))
    assert_close(model.glca_block.block.attn.relative_position_bias_table.detach(), expected)
    assert torch.equal(model.glca_block.block.mlp.fc1.weight, last.mlp.fc1.weight)
    fresh = create_model(NAMES[0], 5, img_size=48, glca_init="random", ablation="sa_glca", **TWO_STAGES)
    assert not torch.equal(fresh.glca_block.block.mlp.fc1.weight, fresh.backbone.layers[-1].blocks[-1].mlp.fc1.weight)
    decay_free = model.no_weight_decay()
    assert "glca_block.block.attn.relative_position_bias_table" in decay_free and len(decay_free) == 5


@pytest.mark.parametrize(
    ("options", "token"),
    [
        ({"distractor_tokens": 0.5}, "distractor_tokens"),
        ({"local_queries": "cross"}, "local_queries cross"),
        ({"glca_blocks": 3, "glca_init": "last_block"}, "glca_blocks"),
        ({"dynamic_img_size": True}, "dynamic_img_size"),
        ({"global_pool": "max"}, "global_pool"),
        ({"depths": (2, 10**6)}, "depths"),
        ({"depths": (1,) * 40}, "depths"),
    ],
)
def test_what_cannot_be_exact_is_refused(options, token):
    with pytest.raises(InputError, match=token):
        create_model(NAMES[0], 5, img_size=48, **TWO_STAGES | options)


@pytest.mark.parametrize("local_queries", ["random", "penultimate", "local_only"])
def test_other_local_queries_and_noise_run(local_queries):
    case = MULTIPLE[0]
    model = case.create(local_queries=local_queries, distractor_noise=True).train()
    out = model(case.images())
    sum(logits.sum() for logits in out.logits.values()).backward()
    assert model.glca_block.block.attn.relative_position_bias_table.grad.abs().sum() > 0


def test_windows_split_and_join():
    windows = Windows((5, 7), (3, 4), (1, 2))
    tokens = torch.randn(2, 35, 6)
    split = windows.split(tokens)
    assert split.shape == (2, windows.number, windows.area, 6) and windows.number == 4
    assert torch.equal(windows.join(split), tokens)
    weights = torch.rand(2, 4, 12, 12)
    by_windows = windows.join(weights @ split)
    assert_close(windows.scatter(weights) @ tokens, by_windows, atol=1e-5, rtol=1e-5)


def test_freezing_lora_and_layer_decay_follow_the_stages():
    model = create_model(NAMES[0], 5, img_size=48, ablation="sa_only", **TWO_STAGES)
    scales = layer_scales(model, 0.5)
    blocks = [f"backbone.layers.{stage}.blocks.{block}.norm1.weight" for stage in (0, 1) for block in (0, 1)]
    assert all(2 * scales[low] == scales[high] for low, high in pairwise(blocks)) and scales[blocks[-1]] == 0.5
    assert scales["backbone.layers.1.downsample.norm.weight"] == scales[blocks[2]]
    model.freeze(3)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "backbone.layers.1.downsample.reduction.weight" in frozen and "backbone.patch_embed.proj.weight" in frozen
    assert not any(name.startswith(("backbone.layers.1.blocks.1", "backbone.norm", "backbone.head")) for name in frozen)
    add_lora(model, 2, in_glca=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("layers.1.blocks.1" in name or "head" in name for name in trained) and len(trained) == 2 + 8


def test_compiled_blocks_give_the_same():
    case = MULTIPLE[0]
    model, images, distractors = case.create().eval().train(), case.images(), torch.tensor([2, 0, 1])
    expected = model(images, distractors).logits
    torch._dynamo.reset()
    model.compile_blocks("eager")
    for branch, logits in model(images, distractors).logits.items():
        assert_close(logits, expected[branch])


def test_a_file_fills_a_backbone_of_other_windows_as_in_timm(tmp_path, caplog):
    torch.manual_seed(0)
    source = timm.create_model(NAMES[0], num_classes=5, img_size=96, **SMALL)
    randomize(source)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    with caplog.at_level("INFO"):
        model = create_model(NAMES[0], 5, img_size=64, pretrained=str(tmp_path / "a.safetensors"), **SMALL).eval()
    assert "6×6 → 4×4" in caplog.text
    reference = timm.create_model(NAMES[0], num_classes=5, img_size=64, **SMALL).eval()
    timm.models.load_checkpoint(
        reference,
        str(tmp_path / "a.safetensors"),
        filter_fn=timm.models.swin_transformer.checkpoint_filter_fn,
    )
    images = torch.randn(2, 3, 64, 64)
    assert_close(model.predict(images, branch="sa"), reference(images).softmax(-1), atol=1e-5, rtol=1e-4)


def test_tables_of_rectangles_are_taken_at_their_own_size_alone(tmp_path):
    kwargs = TWO_STAGES | {"window_size": 6}
    source = timm.create_model(NAMES[0], num_classes=5, img_size=(32, 48), **kwargs)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    options = {"num_classes": 5, "pretrained": str(tmp_path / "a.safetensors"), **kwargs}
    with pytest.raises(InputError, match="no squares"):
        create_model(NAMES[0], img_size=(48, 32), **options)
    with pytest.raises(InputError, match="no squares"):
        create_model(NAMES[0], img_size=(48, 32), weights_img_size=(32, 48), **options)
    model = create_model(NAMES[0], img_size=(32, 48), weights_img_size=(32, 48), **options)
    for name, value in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)


def test_the_original_files_are_mapped(tmp_path):
    """Microsoft's names: patch merging at the end of a stage, the head without `fc`, and buffers."""
    source = timm.create_model(NAMES[0], num_classes=5, img_size=96, **SMALL)
    state = {}
    for name, value in source.state_dict().items():
        for stage in (1, 2, 3):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample!")
        state[name.replace("!", "").replace("head.fc.", "head.")] = value
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    torch.save({"model": state}, tmp_path / "swin.pth")
    model = create_model(NAMES[0], 5, img_size=96, pretrained=str(tmp_path / "swin.pth"), **SMALL)
    for name, value in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)
    with pytest.raises(InputError, match="do not fit"):
        create_model("deit_tiny_patch16_224", 5, img_size=96, pretrained=str(tmp_path / "swin.pth"))
    with pytest.raises(InputError, match="do not fit"):
        create_model(NAMES[0], 5, img_size=96, pretrained=str(tmp_path / "swin.pth"), **SMALL | {"embed_dim": 24})


def test_a_run_is_trained_loaded_and_explained(dcal, small, tmp_path):
    kwargs = json.dumps(TWO_STAGES)
    flags = [flag for flag in small if "backbone" not in flag]
    flags += [f"--backbone={NAMES[0]}", f"--backbone_kwargs={kwargs}", "--use_gradient_checkpointing=true"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "run").status == 0
    loaded = load_model(tmp_path / "run", device="cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    assert loaded.predict(image).label in loaded.labels
    found = loaded.explain(image, gradient=True)
    assert found.rollout.shape == (4, 4) and np.isfinite(found.gradient).all() and found.glca is not None
    again = create_model(NAMES[0], 5, img_size=32, pretrained=str(tmp_path / "run"), glca_init="random", **TWO_STAGES)
    assert torch.equal(again.glca_norm.weight, loaded.model.glca_norm.weight.float())


def test_maps_matches_and_cached_features():
    case = MULTIPLE[0]
    model = case.create(ablation="sa_glca").eval()
    images = case.images(batch=2)
    for method in ("pwca", "cosine"):
        assert match_scores(model, images[:1], images[1:], method).shape == (1, 35, 35)
    with torch.no_grad():
        out, again = model(images), model.forward_encoded(model.encode(images))
    for branch in ("sa", "glca"):
        assert_close(again.logits[branch], out.logits[branch])
    found = explain(model.backbone.float(), Image.new("RGB", (36, 56), (9, 99, 199)), gradient=True)
    assert found.rollout.shape == (7, 5)
    assert Swin().grid(model.backbone, (56, 36)) == (7, 5)


@pytest.mark.parametrize("name", ["cub_swin_tiny", "msmt17_swin_tiny"])
def test_recipes_have_the_papers_branches(name):
    _, settings = read_config(name)
    assert settings["ablation"] == "sa_pwca" and settings["backbone"].startswith("swin_tiny_patch4_window7_224")
