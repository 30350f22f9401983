"""Weights as people have them: prefixes, nested dicts, EMA, runs of this project; and refusals that say why."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dual_cross_attention import InputError, create_model
from dual_cross_attention.configs import FGVC_CONFIGS, REID_CONFIGS
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.inference.model_files import read_model, save_model
from tests.helpers import assert_says
from tests.weights.test_weights import TINY, write_npz

FIXTURES = Path(__file__).parents[1] / "fixtures" / "format_1"
VIT = "vit_tiny_patch16_224"


def vit(seed=0, name=VIT, **more):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=5, img_size=32, **{**TINY, **more})


def state_of(seed=0, **more):
    return vit(seed, **more).state_dict()


def load(path, name=VIT, **more):
    torch.manual_seed(9)
    return create_model(name, 5, img_size=32, pretrained=str(path), **{**TINY, **more}).backbone


def is_of(model, seed):
    return all(torch.equal(value, model.state_dict()[name]) for name, value in state_of(seed).items())


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def refused(path, name=VIT, **more):
    with pytest.raises(InputError) as caught:
        load(path, name, **more)
    message = str(caught.value)
    assert len(message) <= 600 and "\n" not in message
    return message


# --- where the backbone is ---


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt", ".pth.tar", ".PTH", ".SafeTensors", ".bin"])
def test_suffixes(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file(state_of(), path) if suffix.lower() == ".safetensors" else torch.save(state_of(), path)
    assert is_of(load(path), 0)


def test_npz_in_capitals(tmp_path):
    write_npz(vit(), tmp_path / "ViT.npz")
    path = (tmp_path / "ViT.npz").rename(tmp_path / "ViT.NPZ")
    torch.testing.assert_close(load(path).blocks[1].mlp.fc1.weight, vit().blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize(
    "prefix", ["model.", "base.", "backbone.", "module.", "teacher.backbone.", "anything.at.all.", "module._orig_mod."]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_common_prefix_is_removed_aloud(tmp_path, caplog, prefix, suffix):
    path = tmp_path / f"weights{suffix}"
    state = under(prefix, state_of())
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    caplog.set_level("INFO", logger="dual_cross_attention")
    assert is_of(load(path), 0)
    assert f"prefix '{prefix.replace('_orig_mod.', '')}' removed" in caplog.text


def test_a_prefix_beside_other_tensors(tmp_path, caplog):
    """As re-identification's `base.` beside its classifier, or Lightning's `model.` beside a loss."""
    caplog.set_level("INFO", logger="dual_cross_attention")
    torch.save({"state_dict": under("base.", state_of()) | {"bottleneck.weight": torch.ones(3)}}, tmp_path / "a.pth")
    assert is_of(load(tmp_path / "a.pth"), 0)
    assert "of 'state_dict', prefix 'base.' removed, 1 tensors" in caplog.text


@pytest.mark.parametrize(
    "key", ["teacher", "student", "net", "params", "model_state_dict", "state_dict", "model", "odd"]
)
def test_nested_dicts_are_searched(tmp_path, caplog, key):
    content = {key: under("backbone.", state_of()), "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    content["optimizer"] = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save(content, tmp_path / "a.pth")
    caplog.set_level("INFO", logger="dual_cross_attention")
    assert is_of(load(tmp_path / "a.pth"), 0)
    assert f"of '{key}', prefix 'backbone.' removed" in caplog.text


def test_numbers_beside_tensors_do_not_matter(tmp_path):
    torch.save({**state_of(), "epoch": 3, "name": "x", "best": 0.5, "names": ["a"], "none": None}, tmp_path / "a.pth")
    assert is_of(load(tmp_path / "a.pth"), 0)


@pytest.mark.parametrize(
    ("ema", "other"),
    [("model_ema", "model"), ("state_dict_ema", "state_dict"), ("teacher", "student"), ("params_ema", "params"),
     ("ema", "net"), ("zoo.ema_model", "model"), ("EMA", "model")],
)  # fmt: skip
@pytest.mark.parametrize("ema_first", [True, False])
def test_ema_weights_are_preferred_aloud_and_the_key_takes_the_others(tmp_path, caplog, ema, other, ema_first):
    parts = {ema: state_of(0), other: state_of(1)}
    content = {}
    for key in sorted(parts, key=lambda name: (name == ema) != ema_first):
        *outer, last = key.split(".")
        (content.setdefault(outer[0], {}) if outer else content)[last] = parts[key]
    torch.save(content, tmp_path / "a.pth")
    caplog.set_level("INFO", logger="dual_cross_attention")
    assert is_of(load(tmp_path / "a.pth"), 0)
    assert_says(caplog.text, "EMA", f"'{ema}' is taken, not '{other}'")
    assert is_of(load(tmp_path / "a.pth", weights_key=other), 1)
    assert is_of(load(tmp_path / "a.pth", weights_key=ema), 0)


@pytest.mark.parametrize(
    "head", [{}, {"head.weight": torch.zeros(7, 48), "head.bias": torch.zeros(7)}], ids=["none", "of another width"]
)
def test_ema_weights_are_preferred_without_a_head_that_fits(tmp_path, caplog, head):
    ema = {name: value for name, value in state_of(0).items() if not name.startswith("head.")} | head
    torch.save({"model": state_of(1), "model_ema": ema}, tmp_path / "a.pth")
    caplog.set_level("INFO", logger="dual_cross_attention")
    loaded = load(tmp_path / "a.pth").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in ema.items() if name not in head)
    assert "'model_ema' is taken, not 'model'" in caplog.text
    assert "initialized: head.bias, head.weight" in caplog.text
    assert is_of(load(tmp_path / "a.pth", weights_key="model"), 1)


def test_of_others_that_fit_the_one_with_a_fitting_head_is_taken(tmp_path):
    without = {name: value for name, value in state_of(0).items() if not name.startswith("head.")}
    torch.save({"state_dict": without, "model": state_of(1)}, tmp_path / "a.pth")
    assert is_of(load(tmp_path / "a.pth"), 1)


def test_ema_weights_of_another_model_are_not_taken(tmp_path, caplog):
    torch.save({"model": state_of(0), "model_ema": state_of(1, depth=1)}, tmp_path / "a.pth")
    assert is_of(load(tmp_path / "a.pth"), 0)
    assert "'model_ema' do not fit" in caplog.text


def test_prefixes_of_one_dict_are_told_apart_as_nested_dicts_are(tmp_path, caplog):
    caplog.set_level("INFO", logger="dual_cross_attention")
    state = under("student.backbone.", state_of(1)) | under("teacher.backbone.", state_of(0))
    save_file(state, tmp_path / "a.safetensors")
    assert is_of(load(tmp_path / "a.safetensors"), 0)
    assert "'teacher.backbone' is taken, not 'student.backbone'" in caplog.text
    assert is_of(load(tmp_path / "a.safetensors", weights_key="student"), 1)
    message = refused(tmp_path / "a.safetensors", weights_key="studnt")
    assert "student.backbone, teacher.backbone" in message


def test_several_fitting_parts_are_logged(tmp_path, caplog):
    caplog.set_level("INFO", logger="dual_cross_attention")
    torch.save({"first": state_of(0), "second": state_of(1)}, tmp_path / "a.pth")
    assert is_of(load(tmp_path / "a.pth"), 0)
    assert "'first' is taken, not 'second'; --weights_key" in caplog.text


def test_heads_and_decoders_of_other_names_are_left_out_aloud(tmp_path, caplog):
    """TransReID keeps a head `fc`; MAE's pretraining files have a decoder and a mask token."""
    extra = {"fc.weight": torch.zeros(3, 48), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    extra |= {"decoder_pos_embed": torch.ones(1, 5, 8), "mask_token": torch.zeros(1, 1, 8)}
    torch.save(under("base.", state_of() | extra), tmp_path / "a.pth")
    caplog.set_level("INFO", logger="dual_cross_attention")
    assert is_of(load(tmp_path / "a.pth"), 0)
    assert "fc.weight" in caplog.text and "2 tensors of a decoder" in caplog.text


# --- a model of this project ---


@pytest.fixture
def own(tmp_path):
    """A run's folder with a trained model of 7 classes or identities at 64 x 32, and the model."""

    def make(task="fgvc", ablation="full"):
        settings = {"fgvc": FGVC_CONFIGS, "reid": REID_CONFIGS}[task]["folder"]
        config = settings(
            backbone=VIT, backbone_kwargs=TINY, weights="none", img_size=[64, 32], ablation=ablation, drop_path_rate=0.0
        )
        torch.manual_seed(3)
        model = create_model(VIT, 7, task=task, img_size=(64, 32), ablation=ablation, **TINY)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        (tmp_path / "run").mkdir()
        save_model(tmp_path / "run" / "best.safetensors", model.state_dict(), config, list("abcdefg"), {"epoch": 1})
        return model, tmp_path / "run"

    return make


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("source_task", ["fgvc", "reid"])
@pytest.mark.parametrize("task", ["fgvc", "reid"])
@pytest.mark.parametrize("glca_init", ["random", "last_block"])
def test_backbone_and_glca_are_taken_and_heads_start_anew(own, caplog, source_task, task, as_file, glca_init):
    source, run = own(source_task)
    caplog.set_level("INFO", logger="dual_cross_attention")
    path = run / "best.safetensors" if as_file else run
    arguments = {"task": task, "img_size": (32, 48), "glca_init": glca_init, **TINY}
    model = create_model(VIT, 7, pretrained=str(path), **arguments)  # as many classes: the head is another's anyway
    theirs, ours = source.state_dict(), model.state_dict()
    for name, value in ours.items():
        if "head" in name:
            assert name not in theirs or value.ndim < 2 or not torch.equal(value, theirs[name]), name
        elif name != "backbone.pos_embed":
            assert torch.equal(value, theirs[name]), name
    assert "position embedding 8×4 → 4×6" in caplog.messages
    assert_says(caplog.text, "backbone, GLCA's block and norm are taken", "heads, necks and loss weights")


def test_without_glca_on_either_side(own, caplog):
    source, run = own(ablation="sa_only")
    caplog.set_level("INFO", logger="dual_cross_attention")
    model = create_model(VIT, 5, img_size=(64, 32), pretrained=str(run), glca_init="last_block", **TINY)
    assert "glca_init last_block" in caplog.text
    last = source.backbone.blocks[-1].state_dict()  # of the file, not of the random model before
    assert all(torch.equal(value, last[name]) for name, value in model.glca_block.block.state_dict().items())
    assert torch.equal(model.glca_norm.weight, source.backbone.norm.weight)
    assert not torch.equal(model.backbone.head.weight, source.backbone.head.weight[:5])


def test_glca_that_the_model_does_not_have_is_left(own, caplog):
    source, run = own()
    caplog.set_level("INFO", logger="dual_cross_attention")
    model = create_model(VIT, 5, img_size=(64, 32), pretrained=str(run), ablation="sa_only", **TINY)
    assert torch.equal(model.backbone.norm.weight, source.backbone.norm.weight)
    assert "the backbone is taken; heads" in caplog.text


def test_the_last_block_that_glca_copies_is_the_loaded_one(tmp_path):
    save_file(state_of(), tmp_path / "a.safetensors")
    model = create_model(
        VIT, 5, img_size=32, pretrained=str(tmp_path / "a.safetensors"), glca_init="last_block", **TINY
    )
    assert torch.equal(model.glca_block.block.attn.qkv.weight, vit().blocks[-1].attn.qkv.weight)


def test_a_bare_state_dict_of_ones_own_model(own, tmp_path):
    source, _ = own("reid")
    torch.save(under("module.", source.state_dict()), tmp_path / "a.pth")
    model = create_model(
        VIT, 5, img_size=(64, 32), pretrained=str(tmp_path / "a.pth"), weights_img_size=(64, 32), **TINY
    )
    assert torch.equal(model.glca_norm.weight, source.glca_norm.weight)
    assert torch.equal(model.backbone.pos_embed, source.backbone.pos_embed)


def test_a_run_knows_its_grid(caplog, tmp_path):
    """4×9 = 6×6 patches: nothing is asked, and nothing is resampled."""
    config = FGVC_CONFIGS["folder"](backbone=VIT, backbone_kwargs=TINY, weights="none", img_size=[32, 72])
    source = create_model(VIT, 7, img_size=(32, 72), **TINY)
    save_model(tmp_path / "a.safetensors", source.state_dict(), config, list("abcdefg"), {"epoch": 1})
    model = create_model(VIT, 5, img_size=(32, 72), pretrained=str(tmp_path / "a.safetensors"), **TINY)
    assert torch.equal(model.backbone.pos_embed, source.backbone.pos_embed)
    assert "WARNING" not in caplog.text


def test_a_given_size_that_contradicts_the_header_is_refused(tmp_path):
    """4×9 = 6×6 patches: the flag would scramble them."""
    config = FGVC_CONFIGS["folder"](backbone=VIT, backbone_kwargs=TINY, weights="none", img_size=[32, 72])
    source = create_model(VIT, 7, img_size=(32, 72), **TINY)
    save_model(tmp_path / "a.safetensors", source.state_dict(), config, list("abcdefg"), {"epoch": 1})
    path = str(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"32 72.*leave the flag out"):
        create_model(VIT, 5, img_size=48, pretrained=path, weights_img_size=48, **TINY)
    create_model(VIT, 5, img_size=48, pretrained=path, weights_img_size=(32, 72), **TINY)


def test_on_the_command_line(dcal, small, tmp_path):
    source = timm.create_model(VIT, num_classes=5, img_size=(64, 32), **TINY)
    torch.save({"model": source.state_dict(), "ema": source.state_dict()}, tmp_path / "a.pth")
    command = ["train", *small, "--epochs=1", "--output_dir", tmp_path / "run", "--weights", tmp_path / "a.pth"]
    outcome = dcal(*command)
    assert outcome.status == 2 and "--weights_img_size" in outcome.err and not (tmp_path / "run").exists()
    outcome = dcal(*command, "--weights_img_size", 64, 32, "--weights_key", "model")
    assert outcome.status == 0, outcome.err
    assert "position embedding 8×4 → 4×4" in outcome.out.splitlines()
    assert "of 'model'" in outcome.out
    again = dcal("train", *small, "--epochs=1", "--output_dir", tmp_path / "again", "--weights", tmp_path / "run")
    assert again.status == 0, again.err
    assert "GLCA's block and norm are taken" in again.out
    assert "weights_key" in dcal(*command[:-2], "--weights=none", "--weights_key=a").err


@pytest.mark.parametrize("backbone", ["resnet18", "swin_tiny_patch4_window7_224", "mobilevit_s", "none of timm's", 3])
def test_a_header_that_names_another_backbone_does_not_hide_weights_that_fit(own, backbone):
    source, run = own()
    path = run / "best.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    header["config"] = json.dumps({**json.loads(header["config"]), "backbone": backbone, "backbone_kwargs": {}})
    save_file(load_file(path), path, header)
    loaded = create_model(VIT, 5, img_size=(64, 32), pretrained=str(path), **TINY)
    assert torch.equal(loaded.backbone.blocks[1].mlp.fc1.weight, source.backbone.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize("where", ["header", "settings in the header"])
def test_the_header_of_a_later_format_is_refused(own, where):
    """What its settings mean is not known here."""
    path = own()[1] / "best.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    if where == "header":
        header["format_version"] = f"{FORMAT_VERSION + 1}"
    else:
        header["config"] = json.dumps({**json.loads(header["config"]), "format_version": FORMAT_VERSION + 1})
    save_file(load_file(path), path, header)
    assert f"format_version {FORMAT_VERSION + 1}" in refused(path)


def test_the_checkpoint_of_a_run_of_a_later_format_is_refused(tmp_path):
    run = shutil.copytree(FIXTURES / "fgvc-finished", tmp_path / "run")
    with (run / "config.yaml").open("a") as file:
        file.write(f"format_version: {FORMAT_VERSION + 1}\n")
    (checkpoint,) = (path.parent for path in (run / "checkpoints").glob("*/state.pt"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    with pytest.raises(InputError, match=f"config.yaml.*format_version {FORMAT_VERSION + 1}"):
        create_model(VIT, 9, img_size=config["img_size"], pretrained=str(checkpoint), **config["backbone_kwargs"])


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_runs_of_format_1_and_their_checkpoints_are_weights_too(caplog, task):
    run = FIXTURES / f"{task}-finished"
    config = yaml.safe_load((run / "config.yaml").read_text())
    options = {"task": task, "img_size": (48, 64), **config["backbone_kwargs"]}
    (checkpoint,) = (path.parent for path in (run / "checkpoints").glob("*/state.pt"))
    caplog.set_level("INFO", logger="dual_cross_attention")
    loaded = {}
    for path in (run, checkpoint):
        caplog.clear()
        model = create_model(config["backbone"], 9, pretrained=str(path), **options)
        patch = config["backbone_kwargs"]["patch_size"]
        rows, columns = (side // patch for side in config["img_size"])
        assert f"position embedding {rows}×{columns} → {48 // patch}×{64 // patch}" in caplog.messages
        assert "GLCA's block and norm are taken" in caplog.text
        assert model.pretrained_stats.mean == model.pretrained_stats.std == (0.5,) * 3
        loaded[path] = model.state_dict()
    last = load_file(run / "last.safetensors")  # as the checkpoint of the last epoch
    for name, value in loaded[checkpoint].items():
        if "head" not in name and name != "backbone.pos_embed":
            assert torch.equal(value, last[name]), name


def test_a_run_with_another_backbone_says_which(own):
    message = refused(own()[1], depth=1)
    assert f"--backbone {VIT} --backbone_kwargs '{json.dumps(TINY)}'" in message


@pytest.mark.parametrize("heads", [1, 4, 6])
def test_a_run_with_other_heads_is_refused_though_all_shapes_fit(own, heads):
    assert f"3 attention heads for {heads}" in refused(own()[1], num_heads=heads)


def test_a_folder_without_weights_is_refused(tmp_path):
    assert "best.safetensors" in refused(tmp_path)


# --- refusals ---

HALVES = {"depth": 1}


def only(*names):
    return lambda: {name: value for name, value in state_of().items() if name.startswith(names)}


def renamed(*pairs):
    def make():
        state = {}
        for name, value in state_of().items():
            for old, new in pairs:
                name = name.replace(old, new)
            state[name] = value
        return state

    return make


def swin():
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=12,
                             depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)).state_dict()  # fmt: skip


def transformers():
    state = {"vit.embeddings.cls_token": torch.zeros(1, 1, 48), "vit.layernorm.weight": torch.zeros(48)}
    for name in ("query", "key", "value"):
        state[f"vit.encoder.layer.0.attention.attention.{name}.weight"] = torch.zeros(48, 48)
    return state


REASONS = {
    "a distilled file": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", depth=12).state_dict(),
        "198 position tokens: a distilled file; take --backbone deit_tiny_distilled_patch16_224",
    ),
    "a file of another width": (
        lambda: timm.create_model("deit_small_patch16_224").state_dict(),
        "of width 384 and depth 12, the backbone of 48 and 2; take --backbone vit_small_patch16_224",
    ),
    "another depth": (lambda: state_of(depth=1), "width 48 and depth 1"),
    "register tokens": (lambda: state_of(reg_tokens=4), "a file with 4 register tokens"),
    "layer scale": (lambda: state_of(init_values=1e-5), "the file has layer scale"),
    "a norm before the blocks": (lambda: state_of(pre_norm=True), "a norm before the first block"),
    "average pooling": (lambda: state_of(global_pool="avg"), "average pooling"),
    "no biases of q, k, v": (lambda: state_of(qkv_bias=False), "without biases of query"),
    "Swin": (swin, "a Swin Transformer"),
    "ConvNeXt": (
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4)).state_dict(),
        "a ConvNeXt",
    ),
    "ResNet": (lambda: timm.create_model("resnet10t").state_dict(), "a ResNet"),
    "a head alone": (only("head."), "a head alone"),
    "transformers": (transformers, "separate query, key and value"),
    "names of nothing": (lambda: {f"{'x' * 100}{i}": torch.zeros(1) for i in range(200)}, "no plain ViT"),
}


@pytest.mark.parametrize(("make", "reason"), REASONS.values(), ids=REASONS)
def test_the_likely_reason_stands_in_a_short_refusal(tmp_path, make, reason):
    torch.save(make(), tmp_path / "a.pth")
    message = refused(tmp_path / "a.pth")
    assert f"likely reason: {reason}" in message or reason in message.partition("likely reason: ")[2], message
    assert "tensors fit" in message


def test_the_backbone_can_be_the_odd_one(tmp_path):
    torch.save(state_of(), tmp_path / "a.pth")
    message = refused(tmp_path / "a.pth", "deit_tiny_distilled_patch16_224")
    assert_says(message, "not distilled", "--backbone deit_tiny_patch16_224")
    assert "register tokens" in refused(tmp_path / "a.pth", reg_tokens=2)
    assert "layer scale" in refused(tmp_path / "a.pth", init_values=1e-5)


def test_counts_and_three_examples(tmp_path):
    state = state_of()
    for i, name in enumerate([name for name in state if ".mlp." in name][:5]):
        state[f"extra{i}"] = state.pop(name)
    torch.save({"model": state, "opt": {"a": torch.zeros(2)}}, tmp_path / "a.pth")
    message = refused(tmp_path / "a.pth")
    assert f"{len(state) - 5} of {len(state)} tensors fit" in message
    assert "5 missing [" in message and "5 unexpected [extra0, extra1, extra2, …]" in message


def test_positions_of_another_layout_are_explained(tmp_path):
    torch.save(state_of(no_embed_class=True), tmp_path / "a.pth")
    assert "16 tokens" in refused(tmp_path / "a.pth")


def test_an_unknown_backbone_names_the_three_nearest():
    for name, word in (
        ("deit_tiny_patch61_224", "unknown"),
        ("resnet50", "none of the families"),
        ("x" * 300, "unknown"),
    ):
        with pytest.raises(InputError, match=word) as caught:
            create_model(name, 5)
        assert len(str(caught.value)) < 300 and str(caught.value).count(", ") <= 3


# --- values ---


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_values_that_are_not_finite_are_found_at_load_time(tmp_path, suffix, value):
    model = vit()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[3, 5] = value
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        write_npz(model, path)
    else:
        save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    message = refused(path)
    assert_says(message, "1 of the 9,216 values", "blocks.1.mlp.fc2.weight", "NaN")


@pytest.mark.parametrize("name", ["backbone.norm.weight", "glca_block.block.norm1.bias"])
def test_nan_in_a_model_of_this_project(own, name):
    source, run = own()
    state = source.state_dict()
    state[name][0] = float("nan")
    config = read_model(run).config
    save_model(run / "best.safetensors", state, config, list("abcdefg"), {"epoch": 1})
    for read in (read_model, lambda path: load(path)):
        with pytest.raises(InputError, match=rf"{name.removeprefix('backbone.')} are NaN or infinite"):
            read(run)


def test_nan_in_unused_tensors_is_accepted(tmp_path):
    state = state_of()
    state["head.weight"] = torch.full((3, 48), float("nan"))
    torch.save({"model": state, "optimizer": {"a": torch.full((2,), float("nan"))}}, tmp_path / "a.pth")
    load(tmp_path / "a.pth")


def test_whole_numbers_and_values_beyond_float32(tmp_path):
    state = state_of()
    torch.save({**state, "norm.bias": torch.ones(48, dtype=torch.int8)}, tmp_path / "a.pth")
    assert "quantized" in refused(tmp_path / "a.pth")
    torch.save({**state, "norm.bias": torch.full((48,), 1e200, dtype=torch.float64)}, tmp_path / "b.pth")
    assert "infinite" in refused(tmp_path / "b.pth")
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "c.pth")
    torch.testing.assert_close(load(tmp_path / "c.pth").norm.weight, state["norm.weight"])
