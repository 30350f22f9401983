"""Checkpoints: written whole, the right ones kept, and damage of any kind noticed."""

import hashlib
import json
import os
import shutil
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dual_cross_attention.errors import InputError
from dual_cross_attention.training.checkpointing import checkpoints
from dual_cross_attention.training.checkpointing.checkpoints import (
    MANIFEST,
    PROGRESS,
    STATE,
    CheckpointWriter,
    checkpoint_name,
    list_checkpoints,
    read_progress,
    read_state,
    remove_leftovers,
    verify,
    write_checkpoint,
)
from tests.helpers import assert_says
from tests.training.faults import Faults

ROW = {"epoch": 2, "val/top1": 50.0}
GOOD = {
    "epoch": 2,
    "step": 11,
    "step_in_epoch": 1,
    "batches_per_step": 2,
    "pictures": 40,
    "best": ROW,
    "rows": [ROW],
    "log": {"sums": {"loss": [1.5, 1.0]}, "latest": {"loss": 1.5}},
    "unreadable": {"a.jpg": "empty"},
    "classes": ["ant", "bee"],
}


def names_in(folder):
    return [path.name for path in list_checkpoints(folder)]


# --- writing ---


@pytest.fixture
def writer(tmp_path):
    """A writer, which collects what it tells in `told`."""
    told = []
    writer = CheckpointWriter(tmp_path / "checkpoints", told.append)
    writer.told = told
    return writer


def save(writer, name, best=None, value=0.0, then=None):
    writer.save(name, {"task": {"w": torch.full((3,), value)}}, {"name": name}, best, then)
    writer.wait()


def test_round_trip_of_a_checkpoint(writer):
    state = {"task": {"w": torch.arange(5.0)}, "optimizer": {"lr": 0.1, "groups": [1, (2, "x")]}, "scaler": None}
    writer.save("epoch_0001", state, GOOD)
    state["task"]["w"].fill_(-1.0)  # the training continues at once
    writer.wait()
    path = writer.folder / "epoch_0001"
    assert verify(path) is None and writer.failed is None
    assert read_progress(path).to_json() == GOOD
    read = read_state(path)
    assert torch.equal(read["task"].pop("w"), torch.arange(5.0))
    assert read == {"task": {}, "optimizer": {"lr": 0.1, "groups": [1, (2, "x")]}, "scaler": None}
    files = json.loads((path / MANIFEST).read_text())["files"]
    for name in (STATE, PROGRESS):
        content = (path / name).read_bytes()
        assert files[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_last_two_and_the_best_are_kept(writer):
    for epoch in range(1, 7):
        save(writer, checkpoint_name(epoch), best=checkpoint_name(min(epoch, 2)))
    assert names_in(writer.folder) == ["epoch_0002", "epoch_0005", "epoch_0006"]
    save(writer, checkpoint_name(6, 70), best="epoch_0006")
    save(writer, checkpoint_name(6, 71), best="epoch_0006")
    assert names_in(writer.folder) == ["epoch_0006", "epoch_0006_step_00000070", "epoch_0006_step_00000071"]
    assert sorted(path.name for path in writer.folder.iterdir()) == names_in(writer.folder)


def test_the_last_is_the_last_by_number(writer):
    """Of more than 9,999 epochs, too, whose names sort otherwise."""
    for epoch in range(9_998, 10_003):
        save(writer, checkpoint_name(epoch))
    assert names_in(writer.folder) == ["epoch_10001", "epoch_10002"]
    save(writer, checkpoint_name(10_002, 123_456_789))
    assert names_in(writer.folder) == ["epoch_10002", "epoch_10002_step_123456789"]


def test_a_checkpoint_of_the_same_name_is_replaced(writer):
    for value in (1.0, 2.0):
        save(writer, "epoch_0001", value=value)
    assert read_state(writer.folder / "epoch_0001")["task"]["w"].tolist() == [2.0] * 3
    assert [path.name for path in writer.folder.iterdir()] == ["epoch_0001"]


def test_what_follows_is_done_with_the_saved_state_once_it_is_there(writer):
    seen = []

    def then(state):
        seen.append((state["task"]["w"].tolist(), names_in(writer.folder)))

    save(writer, "epoch_0001", value=4.0, then=then)
    assert seen == [([4.0] * 3, ["epoch_0001"])]


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_a_failure_is_reported_and_keeps_earlier_checkpoints(writer, monkeypatch, name):
    """And what users read is written all the same: it takes less room."""
    save(writer, "epoch_0001")
    flushed, seen = os.fsync, []

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(name):
            raise OSError(28, "No space left on device")
        flushed(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        save(writer, "epoch_0002", then=seen.append)
    (told,) = writer.told
    assert_says(told, f"'{writer.folder}/epoch_0002'", "No space left on device", f" {writer.folder}/epoch_0001")
    assert writer.failed in told and len(seen) == 1
    assert [path.name for path in writer.folder.iterdir()] == ["epoch_0001"]  # the part that failed takes no room
    save(writer, "epoch_0002")
    assert writer.failed is None and names_in(writer.folder) == ["epoch_0001", "epoch_0002"]


def test_old_ones_make_room_even_if_what_follows_fails(writer):
    def fail(state):
        raise OSError(28, "No space left on device")

    for epoch in range(1, 5):
        save(writer, checkpoint_name(epoch), then=fail)
    assert names_in(writer.folder) == ["epoch_0003", "epoch_0004"]
    assert "cannot write the results" in writer.failed and len(writer.told) == 4


def test_what_a_kill_has_left_goes(tmp_path):
    kept = ["epoch_0001", "epoch_9.damaged"]
    gone = ["epoch_0002.tmp", "epoch_0003_step_00000012.tmp", "epoch_0001.old", "epoch_0002.outdated", "epoch_0004.old"]
    for name in (*kept, *gone):
        write_checkpoint(tmp_path / name, {}, GOOD)
    (tmp_path / "epoch_0004.old" / MANIFEST).unlink()  # it is not whole
    (tmp_path / "notes.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "notes.tmp"}


def saved_until(folder, name, value, **fault):
    """Another process saves a checkpoint until something happens to it; its exit status."""
    process = os.fork()
    if not process:
        Faults(folder, **fault).watch()
        writer = CheckpointWriter(folder, print)
        save(writer, name, value=value)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("does", ["kill", "power cut"])
@pytest.mark.parametrize(
    "kind", ["write state or progress", "flush, before", "rename, before", "rename, after", "remove, after"]
)
def test_there_is_always_one_while_another_takes_its_place(tmp_path, kind, does):
    """And one that is outdated goes for good. Ended at each event of a kind in turn."""
    status, number = -signal.SIGKILL, 0
    while status:
        number += 1
        folder = tmp_path / f"{number}"
        names = [checkpoint_name(epoch) for epoch in (1, 2, 3)]
        for name in names:  # as if the end of the third had kept the first from being removed
            write_checkpoint(folder / name, {"task": {"w": torch.ones(3)}}, GOOD)
        status = saved_until(folder, "epoch_0003", 2.0, kind=kind, number=number, does=does, seed=number)
        assert status in (0, -signal.SIGKILL)
        remove_leftovers(folder)
        there = names_in(folder)
        assert there in (names, names[1:]) and sorted(path.name for path in folder.iterdir()) == there
        assert all(verify(folder / name) is None for name in there)
        assert read_state(folder / "epoch_0003")["task"]["w"].tolist() in ([1.0] * 3, [2.0] * 3)
    assert there == names[1:] and number > 1


def test_one_that_was_outdated_does_not_come_back(tmp_path):
    """As that of a kill after its renaming, the third: two are of the new one."""
    for name in ("epoch_0001", "epoch_0002", "epoch_0003"):
        write_checkpoint(tmp_path / name, {}, GOOD)
    assert saved_until(tmp_path, "epoch_0003", 2.0, kind="rename, after", number=3) == -signal.SIGKILL
    assert not (tmp_path / "epoch_0001").exists()
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == ["epoch_0002", "epoch_0003"]


def test_one_whose_successor_cannot_take_its_place_stays(writer, monkeypatch):
    save(writer, "epoch_0001", value=1.0)

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        save(writer, "epoch_0001", value=2.0)
    assert "Input/output error" in writer.failed
    assert [path.name for path in writer.folder.iterdir()] == ["epoch_0001"]
    assert read_state(writer.folder / "epoch_0001")["task"]["w"].tolist() == [1.0] * 3


# --- reading ---


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "epoch_0002"
    write_checkpoint(path, {"task": {"w": torch.arange(100.0)}}, GOOD)
    assert verify(path) is None
    return path


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "half a state": lambda path: os.truncate(path / STATE, (path / STATE).stat().st_size // 2),
    "an empty state": lambda path: os.truncate(path / STATE, 0),
    "a bit of the state": lambda path: flip(path / STATE, (path / STATE).stat().st_size // 2),
    "the last bit of the state": lambda path: flip(path / STATE, -1),
    "more than the state": lambda path: (path / STATE).open("ab").write(b"more"),
    "no state": lambda path: (path / STATE).unlink(),
    "a folder as state": lambda path: ((path / STATE).unlink(), (path / STATE).mkdir()),
    "a bit of the progress": lambda path: flip(path / PROGRESS, 10),
    "no progress": lambda path: (path / PROGRESS).unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "an empty manifest": lambda path: (path / MANIFEST).write_text(""),
    "another manifest": lambda path: (path / MANIFEST).write_text('{"files": {"state.pt": 1, "progress.json": []}}'),
    "a list as manifest": lambda path: (path / MANIFEST).write_text("[]"),
    "a deep manifest": lambda path: (path / MANIFEST).write_text("[" * 100_000),
    "bytes as manifest": lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "nothing": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed(whole, damage):
    damage(whole)
    wrong = verify(whole)
    assert wrong and "\n" not in wrong and any(name in wrong for name in (STATE, PROGRESS, MANIFEST))


class Runs:
    """A pickle that would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_state_is_refused_and_nothing_runs(whole, tmp_path):
    """With a matching manifest, which an attacker can write, too."""
    torch.save({"task": Runs(tmp_path / "ran")}, whole / STATE)
    content = (whole / STATE).read_bytes()
    files = json.loads((whole / MANIFEST).read_text())["files"]
    files[STATE] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (whole / MANIFEST).write_text(json.dumps({"files": files}))
    assert verify(whole) is None
    with pytest.raises(InputError, match=r"cannot resume from '.*epoch_0002': "):
        read_state(whole)
    assert not (tmp_path / "ran").exists()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(GOOD)), values)
def test_progress_of_any_kind_is_read_or_refused(tmp_path_factory, name, value):
    """What is read can be relied on: every place of it is what a training writes there."""
    path = tmp_path_factory.mktemp("progress")
    (path / PROGRESS).write_text(json.dumps(GOOD | {name: value}))
    try:
        progress = read_progress(path).to_json()
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    else:
        assert all(type(progress[count]) is int and progress[count] >= 0 for count in ("epoch", "step"))
        assert progress["batches_per_step"] >= 1 and all(isinstance(each, str) for each in progress["classes"])
        assert all(
            float(total) is not None and weight + 0 is not None for total, weight in progress["log"]["sums"].values()
        )
        assert all(row["epoch"] >= 0 for row in [*progress["rows"], *([progress["best"]] if progress["best"] else [])])
    finally:
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", -1),
        ("epoch", True),
        ("step", 10**400),
        ("batches_per_step", 0),
        ("best", {"val/top1": 5.0}),
        ("best", {"epoch": "one"}),
        ("rows", [{}]),
        ("log", {"sums": {"loss": [1.0]}, "latest": {}}),
        ("log", {"sums": {}}),
        ("unreadable", {"a.jpg": 3}),
        ("classes", []),
        ("classes", ["a", 2]),
    ],
)
def test_invalid_progress_is_refused_when_it_is_read(tmp_path, name, value):
    (tmp_path / PROGRESS).write_text(json.dumps(GOOD | {name: value}))
    with pytest.raises(InputError, match=rf"{PROGRESS}: ValueError: {name} is .*, expected "):
        read_progress(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "[" * 100_000, '{"epoch": 1e999}'])
def test_no_progress_at_all(tmp_path, text):
    (tmp_path / PROGRESS).write_text(text)
    with pytest.raises(InputError, match=PROGRESS):
        read_progress(tmp_path)
    assert checkpoints.named_checkpoints(tmp_path / "nowhere") == []
