"""What a training can do, with a tiny backbone of each family: two steps each, in this process."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch.testing import assert_close

from dual_cross_attention.models.lora import add_lora, merge_lora
from tests.training.families import FAMILIES, settings_of
from tests.training.test_oom import without_memory

BY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
FIRST_BLOCK = {family: "backbone.blocks.0." for family in FAMILIES} | {"swin": "backbone.layers.0.blocks.0."}
LAST_BLOCK = {family: "backbone.blocks.1." for family in FAMILIES} | {"swin": "backbone.layers.1.blocks.1."}
STOCHASTIC = {"ablation": "full", "drop_path_rate": 0.2}


@pytest.fixture
def make(make_trainer, birds, tmp_path):
    """`make(family, **settings)`: a trainer of one epoch of two steps."""

    def of_family(family, **settings):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        settings = {
            "epochs": 1,
            "batch_size": 8,
            "sample_images": 0,
            "log_with": ["none"],
            "output_dir": str(folder),
        } | settings
        return make_trainer(images=birds[:16], **settings_of(family), **settings)

    return of_family


def weights_of(trainer):
    return {name: value.detach().clone() for name, value in trainer.task.model.state_dict().items()}


def assert_equal_weights(ours, expected, tolerance=1e-5):
    for name, value in expected.items():
        assert_close(ours[name], value, atol=tolerance, rtol=0, msg=lambda message, n=name: f"{n}: {message}")


@BY_FAMILY
def test_accumulation_and_out_of_memory_give_the_step_of_the_whole_batch(make, monkeypatch, family):
    """Two micro-batches of 4 images, 2 images at a time since memory runs out, against one of 8."""
    settings = {"ablation": "sa_glca", "drop_path_rate": 0.0, "optimizer": "sgd", "lr": 0.05}
    expected = make(family, **settings)
    start = weights_of(expected)
    expected.fit()
    ours = make(family, batch_size=4, gradient_accumulation_steps=2, **settings)
    with monkeypatch.context() as patch:
        passed = without_memory(patch, 3)
        ours.fit()
    assert set(passed) == {2} and ours.chunks.count == 2
    assert ours.state.step == expected.state.step == 2
    assert_equal_weights(weights_of(ours), weights_of(expected))
    assert max((value - start[name]).abs().max() for name, value in weights_of(expected).items()) > 1e-4


@BY_FAMILY
def test_gradient_checkpointing_changes_no_weight(make, family):
    """All branches, with stochastic depth and distractors of the same random numbers."""
    expected, ours = make(family, **STOCHASTIC), make(family, use_gradient_checkpointing=True, **STOCHASTIC)
    row, other = expected.fit(), ours.fit()
    assert ours.task.model.grad_checkpointing and not expected.task.model.grad_checkpointing
    assert other["train/loss"] == pytest.approx(row["train/loss"], rel=1e-5)
    assert_equal_weights(weights_of(ours), weights_of(expected), 1e-4)


@BY_FAMILY
def test_bf16_is_near_fp32(make, family):
    expected = make(family, **STOCHASTIC).fit()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    trainer = make(family, precision="bf16", **STOCHASTIC)
    assert trainer.fit()["train/loss"] == pytest.approx(expected["train/loss"], rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.task.parameters())


@BY_FAMILY
def test_the_average_of_the_weights(make, family):
    """The weights after the first step, then 0.8 of the average and 0.2 of the weights."""
    trainer, history = make(family, ema=0.8, **STOCHASTIC), []
    after_step = trainer.on_step_end

    def keep():
        history.append(weights_of(trainer))
        after_step()

    trainer.on_step_end = keep
    trainer.fit()
    first, second = history
    averaged = trainer.strategy.average.state_dict()
    for name, value in first.items():
        assert_close(averaged[name], 0.8 * value + 0.2 * second[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, second[name]) for name, value in averaged.items())


@BY_FAMILY
def test_layer_decay_above_a_frozen_block(make, family):
    """The stem and the first block stay to the bit; the last block learns at half the rate of the heads."""
    trainer = make(family, prepare=lambda task: task.model.freeze(1), layer_decay=0.5, weight_decay=0.5, **STOCHASTIC)
    start = weights_of(trainer)
    trainer.fit()
    below, last = ("backbone.patch_embed.", FIRST_BLOCK[family]), LAST_BLOCK[family]
    names = {id(parameter): name for name, parameter in trainer.task.model.named_parameters()}
    scales = {}
    for group in trainer.strategy.plain_optimizer.param_groups:
        scales |= {names[id(each)]: group["lr_scale"] for each in group["params"] if id(each) in names}
    assert {scale for name, scale in scales.items() if name.startswith(last)} == {0.5}
    assert {scale for name, scale in scales.items() if name.startswith(("glca_", "backbone.head"))} == {1.0}
    for name, value in weights_of(trainer).items():
        if name.startswith(below):
            assert name not in scales and torch.equal(value, start[name]), name
        elif name.startswith((f"{last}mlp.fc1.weight", "glca_block.block.mlp.fc1.weight")):
            assert not torch.equal(value, start[name]), name


@BY_FAMILY
def test_lora(make, family):
    """Each layer has a trained update; merged, the model has the names of one without LoRA, and the same answers."""
    trainer = make(family, prepare=lambda task: add_lora(task.model, 2, in_glca=True), **STOCHASTIC)
    trainer.fit()
    model, plain = trainer.task.model.eval(), make(family).task.model.eval()
    state = model.state_dict()
    merged = merge_lora(state)
    assert merged.keys() == plain.state_dict().keys()
    updated = [name for name in state if name.endswith(".parametrizations.weight.original")]
    assert len(updated) >= 3 * 4
    for name in updated:
        assert not torch.equal(state[name], merged[name.replace(".parametrizations.weight.original", ".weight")]), name
    plain.load_state_dict(merged)
    images = torch.randn(2, 3, 64, 64)
    assert_close(plain.predict(images), model.predict(images))
