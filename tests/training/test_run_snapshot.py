"""What is read of a run folder before it is decided how the run resumes."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from dual_cross_attention.configs import CONFIGS, FGVCConfig
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.data.fingerprint import DataFingerprint, SplitFingerprint, digest_names
from dual_cross_attention.errors import InputError
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training import run_snapshot
from dual_cross_attention.training.checkpointing.checkpoints import MANIFEST, PROGRESS, STATE, write_checkpoint
from dual_cross_attention.training.checkpointing.train_progress import TrainProgress
from dual_cross_attention.training.resume import RunData, decide_resume
from dual_cross_attention.training.run_snapshot import (
    RunSnapshot,
    default_runs,
    inspect_checkpoint,
    inspect_for_resume,
    inspect_run,
    require,
    resolve_resume_path,
)

FIXTURES = Path(__file__).parent.parent / "fixtures" / "format_1"
NAMES = ("epoch_0001", "epoch_0002", "epoch_0002_step_00000007")
DATA = DataFingerprint("folder", 2, digest_names(["a", "b"]), {"train": SplitFingerprint(4, "x")})
CONFIG = FGVCConfig(task="fgvc", dataset="folder", epochs=3)


def progress(epoch: int = 2) -> dict[str, object]:
    counts = {"epoch": epoch, "step": 7, "step_in_epoch": 1, "batches_per_step": 1, "pictures": 4}
    return {
        **counts,
        "best": {},
        "rows": [],
        "log": {"sums": {}, "latest": {}},
        "unreadable": {},
        "classes": ["a", "b"],
    }


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run with settings, data and three checkpoints, without a training."""
    made = RunFolder(tmp_path / "run")
    made.write_config(CONFIG)
    made.write_data(DATA)
    for name in NAMES:
        write_checkpoint(made.checkpoints / name, {}, progress(int(name[6:10])))
    return made


DAMAGE = {
    "half a state": lambda path: os.truncate(path / STATE, (path / STATE).stat().st_size // 2),
    "another state": lambda path: (path / STATE).write_bytes(b"\0" * (path / STATE).stat().st_size),
    "other progress": lambda path: (path / PROGRESS).write_text("{}"),
    "no state": lambda path: (path / STATE).unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "a manifest of nothing": lambda path: (path / MANIFEST).write_text("\0" * 100),
    "nothing": lambda path: [file.unlink() for file in path.iterdir()],
    "a file in its place": lambda path: (shutil.rmtree(path), path.write_text("")),
}


def test_no_folder(tmp_path):
    path = tmp_path / "nowhere"
    assert inspect_run(RunFolder(path)) == RunSnapshot(path, path, path / "checkpoints")
    assert not inspect_run(RunFolder(path)).is_taken and not path.exists()


def test_a_run(folder):
    folder.write_source(Path("/a/run"), Path("/a/run/checkpoints/epoch_0001"))
    (folder.checkpoints / "epoch_0003.left").mkdir()
    seen = inspect_run(folder)
    assert seen == RunSnapshot(
        path=folder.path,
        resolved=folder.path,
        checkpoint_dir=folder.checkpoints,
        config=CONFIG,
        data=DATA,
        source=(Path("/a/run"), Path("/a/run/checkpoints/epoch_0001")),
        checkpoints=tuple(folder.checkpoints / name for name in NAMES),
        has_manifest=True,
        valid=folder.checkpoints / NAMES[-1],
        progress=TrainProgress.from_json(progress()),
        entries=frozenset({*NAMES, "epoch_0003.left"}),
    )
    assert seen.is_taken


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint(folder, damage):
    damage(folder.checkpoints / NAMES[2])
    seen = inspect_run(folder)
    assert (seen.valid, seen.progress) == (folder.checkpoints / NAMES[1], TrainProgress.from_json(progress()))
    ((path, reason),) = seen.damaged
    assert path == folder.checkpoints / NAMES[2] and reason
    for name in NAMES[:2]:
        damage(folder.checkpoints / name)
    seen = inspect_run(folder)
    assert seen.valid is None and seen.progress is None
    assert [path.name for path, _ in seen.damaged] == [*reversed(NAMES)]
    assert seen.has_manifest == (
        damage not in (DAMAGE[name] for name in ("no manifest", "nothing", "a file in its place"))
    )


def test_each_file_is_read_once_and_older_checkpoints_are_not_hashed(folder, monkeypatch):
    calls: Counter[str] = Counter()

    def counted(where, name):
        original = getattr(where, name)

        def count(*arguments):
            calls[f"{name} {arguments[0].name}" if isinstance(arguments[0], Path) else name] += 1
            return original(*arguments)

        monkeypatch.setattr(where, name, count)

    for name in ("verify", "read_progress"):
        counted(run_snapshot, name)
    for name in ("read_config", "read_data", "read_source"):
        counted(RunFolder, name)
    os.truncate(folder.checkpoints / NAMES[2] / STATE, 3)
    inspect_for_resume(CONFIG, folder)
    read = {"read_config", "read_data", "read_source", f"read_progress {NAMES[1]}"}
    assert calls == dict.fromkeys({*read, f"verify {NAMES[2]}", f"verify {NAMES[1]}"}, 1)
    calls.clear()
    inspect_run(folder, verified=False)  # a default folder, of which there may be many
    assert calls == dict.fromkeys(("read_config", "read_data", "read_source"), 1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"named": 5, "checkpoint": ""}', "[" * 100_000, "\0" * 100])
@pytest.mark.parametrize("name", ["source", "data", "config", "progress"])
def test_what_cannot_be_read_is_an_error_only_where_it_is_needed(folder, name, content):
    if name == "progress":
        path = folder.checkpoints / NAMES[2]
        shutil.rmtree(path)
        write_checkpoint(path, {}, {"epoch": content})
    else:
        getattr(folder, name).write_text(content)
    seen = inspect_run(folder)
    assert seen.is_taken
    if name == "config" and content in ("", "{}"):  # no setting in it: the defaults of format 1
        return
    with pytest.raises(InputError) as error:
        require(getattr(seen, name))
    assert len(str(error.value).splitlines()) == 1
    for other in {"source", "data", "config", "progress"} - {name}:
        require(getattr(seen, other))


def test_a_single_checkpoint(folder, tmp_path):
    seen = inspect_checkpoint(folder.checkpoints / NAMES[0])
    assert (seen.path, seen.checkpoint_dir, seen.config) == (folder.path, folder.checkpoints, CONFIG)
    assert (seen.checkpoints, seen.valid) == ((folder.checkpoints / NAMES[0],), folder.checkpoints / NAMES[0])
    assert seen.progress == TrainProgress.from_json(progress(1))
    folder.config.unlink()
    assert inspect_checkpoint(folder.checkpoints / NAMES[0]).config is None
    gone = inspect_checkpoint(tmp_path / "gone" / "epoch_0001")
    assert (gone.valid, gone.config, len(gone.damaged)) == (None, None, 1)


def test_what_a_path_names(folder, tmp_path, monkeypatch):
    """A path is known again by where it leads, however it is typed."""
    link = tmp_path / "link"
    link.symlink_to(folder.path)
    new = RunFolder(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    for typed in ("run", "./run/", "new/../run", link, folder.path):
        config = FGVCConfig(resume=str(typed))
        assert resolve_resume_path(config) == folder.path
        seen = inspect_for_resume(config, new)
        assert (seen.resume_from, seen.named.valid) == (folder.path, folder.checkpoints / NAMES[2])
        own = inspect_for_resume(config, RunFolder(link))
        assert own.own.resolved == own.named.resolved == folder.path
    seen = inspect_for_resume(FGVCConfig(resume=str(link / "checkpoints" / NAMES[0])), new)
    assert seen.named.checkpoints == (folder.checkpoints / NAMES[0],)
    for resume in ("auto", "never"):
        assert inspect_for_resume(FGVCConfig(resume=resume), folder)[1:] == (None, None, None)


def test_what_it_began_from_is_read_only_while_it_is_needed(folder, tmp_path):
    """Another run may be deleted once this one has a checkpoint of its own."""
    began, on = folder.checkpoints / NAMES[2], RunFolder(tmp_path / "on")
    on.write_source(folder.path, began)
    other = folder.checkpoints / NAMES[0]
    for resume in ("auto", folder.path, began):
        seen = inspect_for_resume(FGVCConfig(resume=str(resume)), on)
        assert (seen.named, seen.origin.valid, seen.origin.config) == (None, began, CONFIG)
    seen = inspect_for_resume(FGVCConfig(resume=str(other)), on)
    assert (seen.named.valid, seen.origin) == (other, None)
    write_checkpoint(on.checkpoints / NAMES[0], {}, progress())
    shutil.rmtree(folder.path)
    for resume in ("auto", folder.path, began):
        assert inspect_for_resume(FGVCConfig(resume=str(resume)), on)[2:] == (None, None)


def test_default_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = default_runs(FGVCConfig(dataset="folder", backbone="deit_small_patch16_224", ablation="full", seed=7))
    assert [next(runs).path.name for _ in range(3)] == [
        f"fgvc-folder-deit_small_patch16_224-full-seed7{number}" for number in ("", "-2", "-3")
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("task", "images"), [("fgvc", 2500), ("reid", None)])
def test_a_run_of_format_1(task, images):
    """It has no data.json: what is known of its data is in its checkpoints. The same command resumes it."""
    folder = RunFolder(FIXTURES / f"{task}-interrupted")
    seen = inspect_run(folder)
    known = json.loads((seen.valid / PROGRESS).read_text())
    assert seen.data is None and seen.source is None and seen.config.format_version == 1
    assert seen.trained_on == (known["classes"], known["pictures"]) and images in (None, known["pictures"])
    classes, count = seen.trained_on
    data = RunData(DataFingerprint("toy", 0, "", {"train": SplitFingerprint(count, "")}), classes)
    flags = ["--lr=2e-3"] if task == "fgvc" else ["--eval_every=1"]
    size = '{"patch_size":16,"embed_dim":12,"depth":2,"num_heads":2}'
    shared = ["--dataset=toy", "--epochs=3", "--warmup_epochs=1", "--device=cpu", f"--backbone_kwargs={size}"]
    typed = parse_config([f"--task={task}", *shared, *flags])
    # From Python: settings that were not typed are those of the run where they are today's defaults.
    from_python = CONFIGS[task]["toy"](**yaml.safe_load(folder.config.read_text()))
    assert from_python.format_version > 1 and from_python.given is None
    for config in (typed, from_python):
        decision = decide_resume(config, inspect_for_resume(config, folder), data)
        assert (decision.checkpoint, decision.progress) == (seen.valid, require(seen.progress))
        assert "did not record its data" in decision.warnings[0]
