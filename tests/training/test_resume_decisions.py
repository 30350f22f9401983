"""Every decision about resuming, as a table: a command and what lies in the folders → how the run begins or resumes."""

import builtins
import io
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dual_cross_attention.configs import FGVCConfig, ToyConfig
from dual_cross_attention.configs.parse import parse_config, restore_config
from dual_cross_attention.data.fingerprint import DataFingerprint, SplitFingerprint, digest_names
from dual_cross_attention.errors import InputError
from dual_cross_attention.training.checkpointing.train_progress import TrainProgress
from dual_cross_attention.training.resume import ResumeDecision, RunData, decide_resume, resolve_output_dir
from dual_cross_attention.training.run_snapshot import ResumeSnapshots, RunSnapshot, TrainedOn
from dual_cross_attention.training.train_state import TrainState

RUN, OTHER = Path("/runs/run"), Path("/runs/other")
CLASSES = ["ant", "bee", "cat"]


def fingerprint(train: str = "train", images: int = 36) -> DataFingerprint:
    splits = {"train": SplitFingerprint(images, train), "test": SplitFingerprint(18, "test")}
    return DataFingerprint("folder", len(CLASSES), digest_names(CLASSES), splits)


DATA = RunData(fingerprint(), CLASSES)
OTHER_DATA = fingerprint("other")
BASE = {"task": "fgvc", "dataset": "folder", "epochs": 3, "lr": 1e-5, "weights": "none", "precision": "fp32"}
STORED = FGVCConfig(**BASE)
STORED_1 = restore_config(BASE, "a run of format 1")
ERROR = InputError("cannot read the file")


def command(**settings: Any) -> FGVCConfig:
    return FGVCConfig(**BASE | settings)


def progress(epoch: int = 2) -> TrainProgress:
    return TrainProgress(TrainState(epoch, best={"epoch": 1}), 1, 36, [], {}, {}, {}, CLASSES)


def run(*names: str, path: Path = RUN, damaged: str | tuple[str, ...] = (), **fields: Any) -> RunSnapshot:
    """A folder with a run; its checkpoints are whole except for the damaged ones, which are the newest."""
    damaged = [damaged] if isinstance(damaged, str) else [*damaged]
    paths = [path / "checkpoints" / name for name in (*names, *damaged)]
    whole = paths[: len(names)]
    return RunSnapshot(
        **{
            "path": path,
            "resolved": path,
            "checkpoint_dir": path / "checkpoints",
            "config": STORED,
            "data": DATA.fingerprint,
            "checkpoints": tuple(paths),
            "has_manifest": bool(paths),
            "valid": whole[-1] if whole else None,
            "damaged": tuple((each, "state.pt is missing") for each in reversed(paths[len(names) :])),
            "progress": progress() if whole else None,
            "entries": frozenset(each.name for each in paths),
        }
        | fields
    )


def one(name: str, path: Path = OTHER, **fields: Any) -> RunSnapshot:
    """A single checkpoint of a run, as `inspect_checkpoint` sees it."""
    return replace(run(name, path=path), **fields)


def empty(path: Path = RUN) -> RunSnapshot:
    return RunSnapshot(path, path, path / "checkpoints")


def old(*names: str, classes: list[str] = CLASSES, images: int = 36, **fields: Any) -> RunSnapshot:
    """A run of format 1, which has no data.json."""
    return run(*names, config=STORED_1, data=None, trained_on=TrainedOn(classes, images), **fields)


def at(name: str, path: Path = RUN) -> Path:
    return path / "checkpoints" / name


EPOCH_1, EPOCH_2, LATER = "epoch_0001", "epoch_0002", "epoch_0002_step_00000007"
FROM_OTHER = (OTHER, at(LATER, OTHER))  # resumed_from.json of a run that began from the newest checkpoint of OTHER
WENT_BACK = (at(EPOCH_2), at(EPOCH_2))  # of one that went back to a checkpoint of its own


class Row(NamedTuple):
    """A case.

    Args:
        own, named, origin: see `ResumeSnapshots`.
        settings: of the command, beside `BASE`; `resume` is a path where `named` or `again` says so.
        path: what --resume names.
        begins, resumes: expected: without a checkpoint, or the checkpoint.
        refuses: expected instead: key tokens of the error.
        tells: key tokens of each warning.
        more: expected of the decision.
    """

    own: RunSnapshot
    settings: dict[str, Any] = {}  # noqa: RUF012
    path: Path | None = None
    named: RunSnapshot | None = None
    origin: RunSnapshot | None = None
    begins: bool = False
    resumes: Path | None = None
    refuses: tuple[str, ...] = ()
    tells: tuple[tuple[str, ...], ...] = ()
    more: dict[str, Any] = {}  # noqa: RUF012


TWO = run(EPOCH_2, LATER)
OTHER_TWO = run(EPOCH_2, LATER, path=OTHER)
TAKEN = ("holds a run already", "take another --output_dir")
ORIGIN_GONE = (f"'{RUN}' began from '{at(LATER, OTHER)}'", "no checkpoint of its own yet", "gone or damaged")
UNKNOWN_DATA = ("did not record its data",)

ROWS = {
    # --- nothing there yet ---
    "an empty folder": Row(empty(), begins=True, more={"stored": None, "source": None, "progress": None}),
    "an empty folder, never": Row(empty(), {"resume": "never"}, begins=True),
    # --- the folder holds the run ---
    "killed before its first checkpoint": Row(run(), begins=True, more={"stored": STORED, "progress": None}),
    "the same command": Row(TWO, resumes=at(LATER), more={"stored": STORED, "renames": (), "is_finished": False}),
    "never": Row(TWO, {"resume": "never"}, refuses=(*TAKEN, "--resume auto")),
    "never, before its first checkpoint": Row(run(), {"resume": "never"}, refuses=TAKEN),
    "finished": Row(run("epoch_0003", progress=progress(3)), resumes=at("epoch_0003"), more={"is_finished": True}),
    "of an epoch that is not the last": Row(TWO, resumes=at(LATER), more={"is_finished": False}),
    # --- settings ---
    "settings that are free to change": Row(
        TWO,
        {"num_workers": 7, "device": "cpu", "cache": "ram", "data_root": "/moved", "eval_batch_size": 5},
        resumes=at(LATER),
        more={"config": {"num_workers": 7, "cache": "ram", "data_root": "/moved", "eval_batch_size": 5}},
    ),
    "other settings": Row(
        TWO, {"lr": 0.5, "seed": 7}, refuses=("lr (1e-05 there, 0.5 here)", "seed (0 there, 7 here)", "other settings")
    ),
    "other settings, before its first checkpoint": Row(run(), {"lr": 0.5}, refuses=("lr (1e-05 there, 0.5 here)",)),
    "more epochs": Row(TWO, {"epochs": 4}, refuses=("epochs (3 there, 4 here)", f"--resume {RUN}")),
    "fewer epochs": Row(TWO, {"epochs": 2}, refuses=("epochs (3 there, 2 here)",)),
    "settings that cannot be read": Row(run(LATER, config=ERROR), refuses=("cannot read the file",)),
    "precision left open": Row(
        run(LATER, config=command(precision="bf16")),
        {"precision": "auto"},
        resumes=at(LATER),
        more={"config": {"precision": "bf16"}},
    ),
    "another precision": Row(
        run(LATER, config=command(precision="bf16")), refuses=("precision (bf16 there, fp32 here)",)
    ),
    "pixel statistics left open": Row(
        run(LATER, config=command(mean=[0.1, 0.2, 0.3], std=[0.5] * 3)),
        {"mean": "auto", "std": "auto"},
        resumes=at(LATER),
        more={"config": {"mean": [0.1, 0.2, 0.3], "std": [0.5] * 3}},
    ),
    "other pixel statistics": Row(
        run(LATER, config=command(mean=[0.1] * 3, std=[0.5] * 3)),
        {"mean": [0.5] * 3, "std": [0.5] * 3},
        refuses=("mean (",),
    ),
    # --- data ---
    "other data": Row(run(LATER, data=OTHER_DATA), refuses=("other data", "36 train images", "--weights")),
    "more images": Row(run(LATER, data=fingerprint(images=37)), refuses=("train images (37 there, 36 here)",)),
    "other data, before its first checkpoint": Row(run(data=OTHER_DATA), refuses=("other data",)),
    "data.json that cannot be read": Row(run(LATER, data=ERROR), refuses=("cannot read the file",)),
    "format 1": Row(old(LATER), resumes=at(LATER), tells=(UNKNOWN_DATA,), more={"stored": STORED_1}),
    "format 1, other labels": Row(old(LATER, classes=["a", "b", "c"]), refuses=("other data", "order of the labels")),
    "format 1, more images": Row(old(LATER, images=37), refuses=("other data", "(37 there, 36 here)")),
    "format 1, with a precision that the command does not name": Row(  # "auto" was not resolved then
        replace(old(LATER), config=STORED_1.replaced(precision="bf16")),
        {"precision": "auto"},
        refuses=("precision (bf16 there, auto here)",),
    ),
    "format 1, data unknown": Row(run(config=STORED_1, data=None), begins=True),
    # --- damage ---
    "the newest is damaged": Row(
        run(EPOCH_1, EPOCH_2, damaged=LATER),
        resumes=at(EPOCH_2),
        tells=((str(at(LATER)), "state.pt is missing", f"kept as {LATER}.damaged", EPOCH_2),),
        more={"renames": ((at(LATER), f"{LATER}.damaged"),)},
    ),
    "damaged, and its new name is taken": Row(
        run(EPOCH_2, damaged=LATER, entries=frozenset({EPOCH_2, LATER, f"{LATER}.damaged", f"{LATER}.damaged1"})),
        resumes=at(EPOCH_2),
        tells=((f"kept as {LATER}.damaged2",),),
        more={"renames": ((at(LATER), f"{LATER}.damaged2"),)},
    ),
    "the two newest are damaged": Row(
        run(EPOCH_1, damaged=(EPOCH_2, LATER)),
        resumes=at(EPOCH_1),
        tells=((LATER, EPOCH_1), (EPOCH_2, EPOCH_1)),
        more={"renames": ((at(LATER), f"{LATER}.damaged"), (at(EPOCH_2), f"{EPOCH_2}.damaged"))},
    ),
    "all are damaged": Row(run(damaged=(EPOCH_2, LATER)), refuses=("none of the 2 checkpoints", "state.pt is missing")),
    "progress that cannot be read": Row(run(LATER, progress=ERROR), refuses=("cannot read the file",)),
    "no manifest anywhere": Row(run(damaged=LATER, has_manifest=False), refuses=("manifest.json", "earlier version")),
    "checkpoints without settings": Row(run(LATER, config=None), refuses=("no config.yaml",)),
    "checkpoints without settings, a path": Row(
        run(LATER, config=None), path=OTHER, named=OTHER_TWO, refuses=(f"'{RUN}'", "no config.yaml")
    ),
    "checkpoints without settings, never": Row(
        run(LATER, config=None), {"resume": "never"}, refuses=("no config.yaml",)
    ),
    # --- --resume PATH, into a new folder ---
    "a run": Row(
        empty(),
        path=OTHER,
        named=OTHER_TWO,
        resumes=at(LATER, OTHER),
        more={"source": (OTHER, at(LATER, OTHER)), "progress": None, "stored": STORED, "renames": ()},
    ),
    "a checkpoint of a run": Row(
        empty(),
        path=at(EPOCH_2, OTHER),
        named=one(EPOCH_2),
        resumes=at(EPOCH_2, OTHER),
        more={"source": (at(EPOCH_2, OTHER), at(EPOCH_2, OTHER))},
    ),
    "a longer training": Row(
        empty(), {"epochs": 5}, OTHER, OTHER_TWO, resumes=at(LATER, OTHER), more={"config": {"epochs": 5}}
    ),
    "a finished run": Row(  # the trainer refuses it
        empty(),
        path=OTHER,
        named=run("epoch_0003", path=OTHER, progress=progress(3)),
        resumes=at("epoch_0003", OTHER),
        more={"is_finished": False},
    ),
    "a run with its own precision": Row(
        empty(),
        {"precision": "auto"},
        OTHER,
        run(LATER, path=OTHER, config=command(precision="bf16")),
        resumes=at(LATER, OTHER),
        more={"config": {"precision": "bf16"}},
    ),
    "a run of other settings": Row(empty(), {"lr": 0.5}, OTHER, OTHER_TWO, refuses=(f"'{OTHER}'", "0.5 here")),
    "a run on other data": Row(
        empty(), path=OTHER, named=run(LATER, path=OTHER, data=OTHER_DATA), refuses=("other data", "--weights")
    ),
    "a run of format 1": Row(
        empty(),
        path=OTHER,
        named=old(LATER, path=OTHER),
        resumes=at(LATER, OTHER),
        tells=(UNKNOWN_DATA,),
        more={"stored": STORED_1},
    ),
    "a run whose newest is damaged": Row(
        empty(),
        path=OTHER,
        named=run(EPOCH_2, path=OTHER, damaged=LATER),
        resumes=at(EPOCH_2, OTHER),
        tells=((LATER, "skipped", EPOCH_2),),
        more={"renames": (), "source": (OTHER, at(EPOCH_2, OTHER))},
    ),
    "a run whose checkpoints are all damaged": Row(
        empty(), path=OTHER, named=run(path=OTHER, damaged=LATER), refuses=("none of the 1 checkpoints", "another one")
    ),
    "nothing": Row(empty(), path=OTHER, named=empty(OTHER), refuses=("nothing to resume at '/runs/other'", "never")),
    "a run without a checkpoint": Row(empty(), path=OTHER, named=run(path=OTHER), refuses=("nothing to resume at",)),
    "a checkpoint without a run": Row(
        empty(), path=at(EPOCH_2, OTHER), named=one(EPOCH_2, config=None), refuses=("nothing to resume", "config.yaml")
    ),
    "a run whose settings cannot be read": Row(
        empty(), path=OTHER, named=run(LATER, path=OTHER, config=ERROR), refuses=("cannot read the file",)
    ),
    # --- --resume PATH, into a folder that holds another run ---
    "a path, the folder is taken": Row(TWO, path=OTHER, named=OTHER_TWO, refuses=TAKEN),
    "a path, the folder is taken by one without a checkpoint": Row(run(), path=OTHER, named=OTHER_TWO, refuses=TAKEN),
    "another path than it began from": Row(
        run(source=FROM_OTHER), path=at(EPOCH_2, OTHER), named=one(EPOCH_2), refuses=TAKEN
    ),
    "another path, before its settings": Row(
        replace(empty(), source=FROM_OTHER), path=at(EPOCH_2, OTHER), named=one(EPOCH_2), refuses=TAKEN
    ),
    "never, before its settings": Row(replace(empty(), source=FROM_OTHER), {"resume": "never"}, refuses=TAKEN),
    "other settings and a taken folder": Row(TWO, {"lr": 0.5}, OTHER, OTHER_TWO, refuses=(f"'{OTHER}'", "0.5 here")),
    # --- --resume PATH in the folder of the same run ---
    "its own folder": Row(TWO, path=RUN, named=TWO, resumes=at(LATER), more={"source": None, "progress": progress()}),
    "its own folder, longer": Row(TWO, {"epochs": 4}, RUN, TWO, resumes=at(LATER), more={"config": {"epochs": 4}}),
    "its own folder, finished": Row(
        run("epoch_0003", progress=progress(3)),
        path=RUN,
        named=run("epoch_0003", progress=progress(3)),
        resumes=at("epoch_0003"),
        more={"is_finished": True},
    ),
    "its own folder, the newest is damaged": Row(
        run(EPOCH_2, damaged=LATER),
        path=RUN,
        named=run(EPOCH_2, damaged=LATER),
        resumes=at(EPOCH_2),
        tells=((f"kept as {LATER}.damaged",),),
        more={"renames": ((at(LATER), f"{LATER}.damaged"),), "source": None},
    ),
    "an earlier checkpoint": Row(
        run(EPOCH_1, EPOCH_2, LATER),
        path=at(EPOCH_1),
        named=one(EPOCH_1, RUN),
        resumes=at(EPOCH_1),
        tells=((EPOCH_2, "later", f"{EPOCH_2}.left"), (LATER, "later", f"{LATER}.left")),
        more={
            "renames": ((at(EPOCH_2), f"{EPOCH_2}.left"), (at(LATER), f"{LATER}.left")),
            "source": (at(EPOCH_1), at(EPOCH_1)),
            "progress": progress(),
        },
    ),
    "an earlier checkpoint, for a longer training": Row(
        TWO, {"epochs": 4}, at(EPOCH_2), one(EPOCH_2, RUN), resumes=at(EPOCH_2), tells=((LATER,),)
    ),
    "an earlier checkpoint, a later one is damaged": Row(
        run(EPOCH_1, EPOCH_2, damaged=LATER),
        path=at(EPOCH_1),
        named=one(EPOCH_1, RUN),
        resumes=at(EPOCH_1),
        tells=((EPOCH_2,), (LATER,)),
        more={"renames": ((at(EPOCH_2), f"{EPOCH_2}.left"), (at(LATER), f"{LATER}.left"))},
    ),
    "an earlier checkpoint that is damaged": Row(
        TWO,
        path=at(EPOCH_2),
        named=one(EPOCH_2, RUN, valid=None, damaged=((at(EPOCH_2), "no state"),)),
        refuses=("none of the 1 checkpoints", "no state"),
    ),
    "an earlier checkpoint, other settings": Row(
        TWO, {"lr": 0.5}, at(EPOCH_2), one(EPOCH_2, RUN), refuses=("lr (1e-05 there, 0.5 here)",)
    ),
    "a checkpoint that was renamed": Row(
        run(EPOCH_2, entries=frozenset({EPOCH_2, f"{LATER}.left"})),
        path=at(f"{LATER}.left"),
        named=one(f"{LATER}.left", RUN),
        refuses=(f"{LATER}.left", "rename"),
    ),
    "its state before it diverged": Row(
        TWO,
        path=RUN / "diverged",
        named=one("x", RUN, checkpoint_dir=RUN, checkpoints=(RUN / "diverged",), valid=RUN / "diverged"),
        resumes=RUN / "diverged",
        more={"renames": (), "progress": None, "source": (RUN / "diverged", RUN / "diverged")},
    ),
    # --- the same path again ---
    "the path again, before its settings": Row(
        replace(empty(), source=FROM_OTHER),
        path=OTHER,
        origin=one(LATER),
        resumes=at(LATER, OTHER),
        more={"source": None, "stored": STORED, "progress": None},
    ),
    "auto, before its settings": Row(
        replace(empty(), source=FROM_OTHER), origin=one(LATER), resumes=at(LATER, OTHER), more={"stored": STORED}
    ),
    "the path again, before its settings, longer": Row(
        replace(empty(), source=FROM_OTHER), {"epochs": 4}, OTHER, origin=one(LATER), resumes=at(LATER, OTHER)
    ),
    "the path again, before its settings, other ones": Row(
        replace(empty(), source=FROM_OTHER), {"lr": 0.5}, OTHER, origin=one(LATER), refuses=("0.5 here",)
    ),
    "the path again, before its settings, other data": Row(
        replace(empty(), source=FROM_OTHER), path=OTHER, origin=one(LATER, data=OTHER_DATA), refuses=("other data",)
    ),
    "the path again, before its first checkpoint": Row(
        run(source=FROM_OTHER), path=OTHER, origin=one(LATER), resumes=at(LATER, OTHER), more={"stored": STORED}
    ),
    "the checkpoint that the path meant": Row(
        run(source=FROM_OTHER), path=at(LATER, OTHER), origin=one(LATER), resumes=at(LATER, OTHER)
    ),
    "auto, before its first checkpoint": Row(run(source=FROM_OTHER), origin=one(LATER), resumes=at(LATER, OTHER)),
    "the path again, longer than its settings": Row(
        run(source=FROM_OTHER), {"epochs": 4}, OTHER, origin=one(LATER), refuses=("epochs (3 there, 4 here)",)
    ),
    "the path again, a longer run": Row(
        run(config=command(epochs=4), source=FROM_OTHER),
        {"epochs": 4},
        OTHER,
        origin=one(LATER),
        resumes=at(LATER, OTHER),
        more={"stored": command(epochs=4)},
    ),
    "the path again, a longer run, shorter": Row(
        run(config=command(epochs=4), source=FROM_OTHER),
        path=OTHER,
        origin=one(LATER),
        refuses=("epochs (4 there, 3 here)",),
    ),
    "the path again, with checkpoints of its own": Row(
        run(LATER, source=FROM_OTHER), path=OTHER, resumes=at(LATER), more={"source": None, "progress": progress()}
    ),
    "auto, with checkpoints of its own": Row(run(LATER, source=FROM_OTHER), resumes=at(LATER)),
    "never, with checkpoints of its own": Row(run(LATER, source=FROM_OTHER), {"resume": "never"}, refuses=TAKEN),
    **{
        f"what it began from is {what}, {when}, {how}": Row(
            own, path=path, origin=one(LATER, **broken), refuses=(*ORIGIN_GONE, reason)
        )
        for what, broken, reason in (
            ("damaged", {"valid": None, "damaged": ((at(LATER, OTHER), "no state"),)}, "no state"),
            ("without settings", {"config": None}, "no config.yaml"),
        )
        for when, own in (
            ("before its settings", replace(empty(), source=FROM_OTHER)),
            ("before its first checkpoint", run(source=FROM_OTHER)),
        )
        for how, path in (("auto", None), ("the path again", OTHER))
    },
    "a source that cannot be read": Row(run(source=ERROR), refuses=("cannot read the file",)),
    "a source that cannot be read, a path": Row(
        run(source=ERROR), path=OTHER, named=OTHER_TWO, refuses=("cannot read the file",)
    ),
    # --- it went back to a checkpoint of its own, and the same path again ---
    "the earlier checkpoint again": Row(
        run(EPOCH_2, LATER, source=WENT_BACK), path=at(EPOCH_2), resumes=at(LATER), more={"renames": (), "source": None}
    ),
    "the earlier checkpoint again, longer": Row(
        run(EPOCH_2, source=WENT_BACK), {"epochs": 4}, at(EPOCH_2), resumes=at(EPOCH_2), more={"config": {"epochs": 4}}
    ),
    "auto after it went back, longer": Row(
        run(EPOCH_2, source=WENT_BACK), {"epochs": 4}, refuses=("epochs (3 there, 4 here)",)
    ),
    "auto after it went back": Row(run(EPOCH_2, LATER, source=WENT_BACK), resumes=at(LATER)),
    "another of its checkpoints after it went back": Row(
        run(EPOCH_1, EPOCH_2, source=WENT_BACK),
        path=at(EPOCH_1),
        named=one(EPOCH_1, RUN),
        resumes=at(EPOCH_1),
        tells=((EPOCH_2,),),
        more={"source": (at(EPOCH_1), at(EPOCH_1))},
    ),
}


@contextmanager
def no_file_access(monkeypatch):
    """Whatever looks at a file fails."""

    def fail(*arguments, **options):
        raise AssertionError(f"access to {arguments}")

    with monkeypatch.context() as patched:
        for module, names in ((os, ("stat", "lstat", "listdir", "scandir", "rename", "mkdir")), (io, ("open",))):
            for name in names:
                patched.setattr(module, name, fail)
        patched.setattr(builtins, "open", fail)
        yield


def decide(monkeypatch, config: FGVCConfig, *snapshots: Any, data: RunData = DATA) -> ResumeDecision:
    with no_file_access(monkeypatch):
        return decide_resume(config, ResumeSnapshots(*snapshots), data)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_decide_resume(monkeypatch, row):
    config = command(**row.settings | ({"resume": str(row.path)} if row.path else {}))
    arguments = (config, row.own, row.path, row.named, row.origin)
    if row.refuses:
        with pytest.raises(InputError) as error:
            decide(monkeypatch, *arguments)
        assert len(str(error.value).splitlines()) == 1
        assert [token for token in row.refuses if token not in str(error.value)] == [], str(error.value)
        return
    assert row.begins != (row.resumes is not None), "the row expects nothing"
    decision = decide(monkeypatch, *arguments)
    assert decision.checkpoint == row.resumes
    assert len(decision.warnings) == len(row.tells), decision.warnings
    for tokens, warning in zip(row.tells, decision.warnings, strict=True):
        assert [token for token in tokens if token not in warning] == [], warning
    for name, expected in row.more.items():
        if name == "config":
            assert {each: getattr(decision.config, each) for each in expected} == expected
        else:
            assert getattr(decision, name) == expected, name
    if decision.stored is not None:  # nothing that makes another run is taken from the command
        assert decision.config.lr == decision.stored.lr


# --- defaults that have changed since ---


def test_a_run_of_format_1_keeps_the_defaults_of_its_time(monkeypatch):
    """The same command line means the same run, though the default precision is another one today."""
    flags = ["--task=fgvc", "--dataset=toy", "--epochs=3"]
    stored = restore_config({"task": "fgvc", "dataset": "toy", "epochs": 3}, "a run")
    assert (stored.format_version, stored.precision, parse_config(flags).precision) == (1, "auto", "fp32")
    own = replace(old(LATER), config=stored)
    # From Python, where it is not known which settings were given: those that are not today's defaults.
    for config in (parse_config(flags), ToyConfig(epochs=3), ToyConfig(epochs=3, precision="auto")):
        decision = decide(monkeypatch, config, own)
        assert decision.checkpoint == at(LATER)
        assert (decision.config.format_version, decision.config.precision) == (1, "auto")
    with pytest.raises(InputError, match=r"precision \(auto.*fp32"):
        decide(monkeypatch, parse_config([*flags, "--precision=fp32"]), own)


# --- the folder of a command that names none ---

NAMES = [Path(f"/runs/name-{number}") for number in range(1, 4)]


def same(path: Path, **fields: Any) -> RunSnapshot:
    return run(LATER, path=path, valid=None, progress=None, **fields)


FOLDERS = {  # candidates, settings of the command, what --resume names; the place of the expected one, and lines
    "none holds anything": ([empty, empty], {}, None, 0, ()),
    "the first holds this run": ([same, empty], {}, None, 0, ()),
    "other settings": ([lambda path: same(path, config=command(lr=0.5)), empty], {}, None, 1, ()),
    "other settings, then this run": ([lambda path: same(path, config=command(lr=0.5)), same], {}, None, 1, ()),
    "more epochs": ([same, empty], {"epochs": 4}, None, 1, ()),
    "free settings": ([same, empty], {"num_workers": 7}, None, 0, ()),
    "other data": ([lambda path: same(path, data=OTHER_DATA), empty], {}, None, 1, ("36 train images",)),
    "other data twice": (
        [lambda path: same(path, data=OTHER_DATA), lambda path: same(path, data=fingerprint(images=9)), empty],
        {},
        None,
        2,
        ("36 train images", "(9 there, 36 here)"),
    ),
    "other data, then this run": ([lambda path: same(path, data=OTHER_DATA), same], {}, None, 1, ("name-1",)),
    "format 1, other labels": (
        [lambda path: same(path, config=STORED_1, data=None, trained_on=TrainedOn(["a"], 36)), empty],
        {},
        None,
        1,
        ("labels (1 there, 3 here)",),
    ),
    "format 1, the same": (
        [lambda path: same(path, config=STORED_1, data=None, trained_on=TrainedOn(CLASSES, 36))],
        {},
        None,
        0,
        (),
    ),
    "never": ([same, empty], {"resume": "never"}, None, 1, ()),
    "never, and settings that cannot be read": (
        [lambda path: same(path, config=ERROR), empty],
        {"resume": "never"},
        None,
        1,
        (),
    ),
    "a path, nothing there": ([empty], {}, OTHER, 0, ()),
    "a path, the run that began from there": ([lambda path: same(path, source=FROM_OTHER)], {}, OTHER, 0, ()),
    "a path, killed before its settings": ([lambda path: replace(empty(path), source=FROM_OTHER)], {}, OTHER, 0, ()),
    "a path, this run that did not": ([same, empty], {}, OTHER, 1, ()),
    "a path, one that began elsewhere": (
        [lambda path: same(path, source=(Path("/runs/x"), Path("/runs/x/checkpoints/epoch_0001"))), empty],
        {},
        OTHER,
        1,
        (),
    ),
    "a path, a longer training": ([lambda path: same(path, source=FROM_OTHER), empty], {"epochs": 4}, OTHER, 1, ()),
    "auto, one that was killed before its settings": (
        [lambda path: replace(empty(path), source=FROM_OTHER), empty],
        {},
        None,
        1,
        (),
    ),
}


@pytest.mark.parametrize(("candidates", "settings", "path", "place", "tells"), FOLDERS.values(), ids=FOLDERS)
def test_resolve_output_dir(monkeypatch, candidates, settings, path, place, tells):
    config = command(**settings | ({"resume": str(path)} if path else {}))
    runs = iter([make(name) for make, name in zip(candidates, NAMES, strict=False)])
    with no_file_access(monkeypatch):
        chosen, lines = resolve_output_dir(config, runs, path, DATA)
    assert chosen == NAMES[place]
    assert len(list(runs)) == len(candidates) - place - 1  # it looks no further than it must
    assert len(lines) == len(tells) and all(token in line for token, line in zip(tells, lines, strict=True)), lines


def test_a_default_folder_that_cannot_be_read_is_refused(monkeypatch):
    for broken in ({"config": ERROR}, {"data": ERROR}):
        with pytest.raises(InputError, match="cannot read the file"):
            resolve_output_dir(command(), [same(NAMES[0], **broken), empty(NAMES[1])], None, DATA)
    with pytest.raises(InputError, match="cannot read the file"):
        resolve_output_dir(command(resume=str(OTHER)), [same(NAMES[0], source=ERROR)], OTHER, DATA)
