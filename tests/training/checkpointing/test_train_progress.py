"""The schema of progress.json: what is written is read back, and files of earlier versions mean the same."""

import json
from pathlib import Path

import pytest

from dual_cross_attention.training.checkpointing.train_progress import TrainProgress
from dual_cross_attention.training.train_state import TrainState

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format_1"


def test_it_is_read_back_as_it_was_written():
    progress = TrainProgress(
        state=TrainState(epoch=2, step=11, step_in_epoch=3, best={"epoch": 1, "val/top1": 50.0}),
        batches_per_step=4,
        num_images=100,
        rows=[{"epoch": 2, "val/top1": 40.0}],
        sums={"loss": (6.0, 3.0)},
        latest={"loss": 1.5},
        unreadable={"a.jpg": "empty"},
        classes=["ant", "bee"],
    )
    content = json.loads(json.dumps(progress.to_json()))
    keys = "epoch step step_in_epoch batches_per_step pictures best rows log unreadable classes"
    assert list(content) == keys.split()
    again = TrainProgress.from_json(content | {"of a later version": 1})
    assert again.state == progress.state and again.sums == {"loss": [6.0, 3.0]}
    assert json.loads(json.dumps(again.to_json())) == content


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("progress.json")), ids=lambda path: path.parent.name)
def test_files_of_format_1(path):
    content = json.loads(path.read_text())
    progress = TrainProgress.from_json(content)
    assert progress.to_json() == content
    assert (progress.state.step, progress.num_images) == (content["step"], content["pictures"])


@pytest.mark.parametrize(
    ("key", "value"), [("epoch", -1), ("step", 1.0), ("batches_per_step", 0), ("log", {}), ("classes", []), ("best", 3)]
)
def test_invalid_values_are_named(key, value):
    content = json.loads(next(FIXTURES.rglob("progress.json")).read_text())
    with pytest.raises(ValueError, match=f"^{key} is "):
        TrainProgress.from_json(content | {key: value})
    content.pop(key)
    with pytest.raises(KeyError):
        TrainProgress.from_json(content)


def test_steps_and_epochs_are_counted():
    state = TrainState()
    for _ in range(3):
        state.finish_step()
    state.finish_epoch()
    state.finish_step()
    assert (state.epoch, state.step, state.step_in_epoch) == (1, 4, 1)
