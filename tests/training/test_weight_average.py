"""The average of the weights: its values, which weights are evaluated, and which file has which."""

from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dual_cross_attention import InputError, load_model
from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.tasks import FGVCTask, ReIDTask, RetrievalSplit
from dual_cross_attention.training.messages import long_average
from dual_cross_attention.training.setup import shard_if_configured
from dual_cross_attention.training.weight_average import WeightAverage
from tests.helpers import metrics_rows, tiny_model

DECAY = 0.8


def averaged(history: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The formula, in float64: the weights after the first step, then 0.8 of the average and 0.2 of the weights."""
    mean = {name: value.double() for name, value in history[0].items()}
    for weights in history[1:]:
        mean = {name: DECAY * value + (1 - DECAY) * weights[name].double() for name, value in mean.items()}
    return mean


def test_the_formula(make_trainer, tmp_path):
    """Of every step of a training of two epochs, and in the files."""
    trainer, history = make_trainer(ema=DECAY), []
    after_step = trainer.on_step_end

    def keep():
        history.append({name: value.clone() for name, value in trainer.task.model.state_dict().items()})
        after_step()

    trainer.on_step_end = keep
    trainer.fit()
    assert len(history) == 10
    expected = averaged(history)
    files = {name: load_file(tmp_path / f"{name}.safetensors") for name in ("last", "last_raw")}
    assert files["last"].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(files["last"][name].double(), value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(files["last_raw"][name], history[-1][name])
    assert not torch.equal(files["last"]["backbone.head.weight"], files["last_raw"]["backbone.head.weight"])


def test_statistics_of_batch_normalization_are_averaged_too():
    split = RetrievalSplit(torch.zeros(2), torch.zeros(2), 1)
    task = ReIDTask(tiny_model("sa_only", task="reid"), split)
    average, neck = WeightAverage(task, DECAY), task.model.sa_head.neck
    average.update(1)
    neck.running_mean += 1.0
    neck.num_batches_tracked += 5
    average.update(2)
    state = average.state_dict()
    torch.testing.assert_close(state["sa_head.neck.running_mean"], torch.full_like(neck.running_mean, 1 - DECAY))
    assert state["sa_head.neck.num_batches_tracked"] == 5


def test_a_checkpoint_without_an_average_starts_one():
    task = FGVCTask(tiny_model("sa_only"))
    average = WeightAverage(task, DECAY)
    with torch.no_grad():
        task.model.backbone.head.bias += 1
    average.load_state_dict(None)
    assert torch.equal(average.state_dict()["backbone.head.bias"], task.model.backbone.head.bias)
    with average.in_use():
        assert task.model is not None and torch.equal(
            task.model.backbone.head.bias, average.state_dict()["backbone.head.bias"]
        )
    assert sum(name.startswith("model.") for name in task.state_dict()) == len(average.state_dict())


@pytest.mark.parametrize(("task", "metric"), [("fgvc", "top1"), ("reid", "mAP")])
def test_what_is_reported_and_loaded(dcal, tasks, tmp_path, task, metric):
    """Rows have the scores of both, and each file has the score that an evaluation of it gives."""
    run = tmp_path / "run"
    outcome = dcal("train", *tasks[task], "--ema=0.8", "--output_dir", run)
    assert outcome.status == 0, outcome.err
    row = metrics_rows(run)[-1]
    assert {f"val/{metric}", f"val/{metric}_raw", f"val/{metric}_glca_raw"} <= row.keys()
    assert f"{metric}_raw {row[f'val/{metric}_raw']:.2f}" in outcome.out
    for name, score in (("last", row[f"val/{metric}"]), ("last_raw", row[f"val/{metric}_raw"])):
        path = run / f"{name}.safetensors"
        evaluated = dcal("eval", path)
        assert evaluated.status == 0 and f"{score:.2f}" in evaluated.out, evaluated.out
        with safe_open(path, framework="pt") as file:
            assert f'"val/{metric}": {score}' in file.metadata()["metrics"]
    loaded = load_model(run).model.state_dict()
    best = load_file(run / "best.safetensors")
    assert all(torch.equal(value, loaded[name]) for name, value in best.items())


def test_files_that_are_missing_are_written_from_the_checkpoint(dcal, tasks, tmp_path):
    run = tmp_path / "run"
    flags = [*tasks["fgvc"], "--ema=0.8", "--output_dir", run]
    assert dcal("train", *flags).status == 0
    before = {path.name: load_file(path) for path in run.glob("*.safetensors")}
    assert set(before) == {"best.safetensors", "last.safetensors", "best_raw.safetensors", "last_raw.safetensors"}
    for name in ("last.safetensors", "last_raw.safetensors"):
        (run / name).unlink()
    assert dcal("train", *flags).status == 0
    for name, tensors in before.items():
        after = load_file(run / name)
        assert all(torch.equal(value, after[tensor]) for tensor, value in tensors.items())


def test_sharded_weights_are_refused():
    run = SimpleNamespace(config=FGVCConfig(parallel="fsdp", ema=0.9))
    with pytest.raises(InputError, match=r"fsdp.*--ema null"):
        shard_if_configured(run, None, SimpleNamespace(num_processes=2, mixed_precision="no"))


def test_an_average_over_most_of_a_training_is_warned_about(dcal, tasks, tmp_path):
    """The weights of n steps ago have D^n of the weight that the last ones have: 1 / (1 - D) steps in all."""
    assert long_average(0.99, 1_870) is None and long_average(0.999, 5_000) is None
    assert "about 1,000 steps, and the training has 1,870: --ema 0.99 " in long_average(0.999, 1_870)
    assert "--ema 0.9995 " in long_average(0.9999, 42_000)
    outcome = dcal("train", *tasks["fgvc"], "--ema=0.999", "--epochs=1", "--output_dir", tmp_path / "run")
    assert outcome.status == 0 and "warning: ema 0.999 averages over about 1,000 steps" in outcome.out + outcome.err
