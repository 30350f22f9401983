"""Experiment trackers: what they get, that a resumed run continues in the same one, and that none ends a training.

The real libraries are tested where they are installed, all of them without a network.
"""

import importlib.util
import json
import struct
from contextlib import suppress
from importlib import import_module
from typing import ClassVar

import pytest
from accelerate.tracking import GeneralTracker
from rich.console import Console

from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.errors import InputError, InterruptedRun
from dual_cross_attention.runs.run_folder import RunFolder
from dual_cross_attention.training import trackers
from dual_cross_attention.training.run_context import RunContext
from dual_cross_attention.training.trackers import Trackers, check_trackers
from tests.helpers import assert_refused, assert_same_run, assert_says, rows_of

METRICS = {"epoch": 3, "train/loss": 0.5, "val/top1": 80.0}


class Run:
    """What a tracker calls its run."""

    def __init__(self, identity):
        self.id = self.name = identity
        self.config: dict = {}
        self.ended: int | None = None

    def finish(self, exit_code):
        self.ended = exit_code


class Fake(GeneralTracker):
    """A tracker in memory, in place of wandb's; `fails` is raised by what it names."""

    name = "wandb"
    requires_logging_directory = False
    made: ClassVar[list["Fake"]] = []
    fails: ClassVar[dict[str, Exception]] = {}

    def __init__(self, project, **options):
        super().__init__()
        self.project, self.options, self.rows, self.images, self.settings = project, options, [], [], []
        Fake.made.append(self)

    @property
    def tracker(self):
        return self.run

    def _may_fail(self, name):
        if name in self.fails:
            raise self.fails[name]

    def start(self):
        self._may_fail("start")
        self.run = Run(self.options["id"] or f"run{len(Fake.made)}")

    def store_init_configuration(self, values):
        self.settings.append(values)

    def log(self, values, step, commit):
        self._may_fail("log")
        assert commit
        self.rows.append({"epoch": step} | values)

    def log_images(self, values, step=None):
        self._may_fail("log")
        self.images.append(values)


@pytest.fixture
def fake(monkeypatch):
    """wandb, as installed and in memory."""
    monkeypatch.setitem(trackers.CLASSES, "wandb", Fake)
    monkeypatch.setattr(trackers, "WandBTracker", Fake)
    monkeypatch.setattr(trackers, "find_spec", lambda name: importlib.util.find_spec("json"))
    Fake.made, Fake.fails = [], {}
    return Fake


def context(folder, warnings=None, **settings):
    class Context(RunContext):
        def warn(self, message):
            warnings.append(message)

    config = FGVCConfig(**{"log_with": ("wandb",), **settings})
    return Context(config, ["ant", "bee"], RunFolder(folder), Console(quiet=True))


def train_in_two_parts(dcal, flags):
    """A training that is interrupted after its first epoch, and resumed."""
    log = Trackers.log

    def interrupt(self, row):
        log(self, row)
        raise InterruptedRun("SIGTERM")

    Trackers.log = interrupt
    try:
        assert dcal("train", *flags).status == 75
    finally:
        Trackers.log = log
    outcome = dcal("train", *flags)
    assert outcome.status == 0, outcome


# --- which trackers ---


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_refused(monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"log_with {name}.*pip install {name}"):
        check_trackers((name,))
    check_trackers(())


def test_a_folder_of_that_name_is_not_the_package(monkeypatch, tmp_path):
    """wandb makes a folder wandb/ where it is started."""
    (tmp_path / "absent_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="not installed"):
        check_trackers(("absent_tracker",))


def test_a_training_refuses_it_before_anything_is_written(dcal, small, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    outcome = dcal("train", *small, "--log_with", "mlflow", "--output_dir", tmp_path / "run")
    assert_refused(outcome, "pip install mlflow")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [("wandb", "wandb"), ("none", "wandb"), ()])
def test_trackers_that_cannot_be_together(given):
    with pytest.raises(InputError, match="log_with"):
        FGVCConfig(log_with=given)


@pytest.mark.parametrize("words", [["--log_with", "none"], ["--log_with=none"]])
def test_none(dcal, small, tmp_path, words):
    outcome = dcal("train", *small, *words, "--epochs=1", "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome
    assert not (tmp_path / "run" / "tensorboard").exists() and not (tmp_path / "run" / "trackers.json").exists()
    assert "tensorboard" not in outcome.out.lower()


@pytest.mark.parametrize("words", [["wandb", "mlflow"], ["wandb,mlflow"]])
def test_several(dcal, small, tmp_path, monkeypatch, words):
    monkeypatch.setattr(
        trackers, "find_spec", lambda name: None if name == "mlflow" else importlib.util.find_spec("json")
    )
    assert_refused(dcal("train", *small, "--log_with", *words), "log_with mlflow")


# --- what a tracker gets ---


def test_settings_metrics_images_and_the_end(dcal, small, tmp_path, fake):
    flags = [*small, "--log_with=wandb", "--tracker_project=birds", "--output_dir", tmp_path / "run"]
    assert dcal("train", *flags).status == 0
    (tracker,) = fake.made
    assert tracker.project == "birds"
    assert tracker.options["name"] == "run" and tracker.options["resume"] == "allow"
    (settings,) = tracker.settings
    assert (settings["epochs"], settings["lr"], settings["log_with"]) == (2, 1e-3, ("wandb",))
    assert tracker.rows == rows_of(tmp_path / "run")
    (images,) = tracker.images
    assert images["train_images"][0].size[0] > 100
    assert tracker.run.ended == 0
    assert json.loads((tmp_path / "run" / "trackers.json").read_text())["trackers"] == {
        "wandb": {"project": "birds", "id": "run1"}
    }


def test_a_resumed_run_continues_in_the_same_one(dcal, tasks, tmp_path, fake, undisturbed):
    """After an interruption in the second epoch; the results are those of an undisturbed run without a tracker."""
    flags = [*tasks["fgvc"], "--sample_images=4", "--output_dir", tmp_path / "run", "--log_with", "wandb"]
    train_in_two_parts(dcal, flags)
    first, second = fake.made
    assert (first.options["id"], second.options["id"]) == (None, "run1")
    assert (first.run.ended, second.run.ended) == (1, 0)
    assert first.rows + second.rows == rows_of(tmp_path / "run")
    assert (len(first.images), len(second.images)) == (1, 0)  # the sheet is of the start
    assert_same_run(tmp_path / "run", undisturbed("fgvc"))


def test_another_project_has_a_run_of_its_own(tmp_path, fake):
    for project, given, identity in (("one", None, "run1"), ("one", "run1", "run1"), ("two", None, "run3")):
        with Trackers(context(tmp_path, tracker_project=project)) as started:
            started.start()
        assert fake.made[-1].options["id"] == given
        assert RunFolder(tmp_path).read_trackers() == {"wandb": {"project": project, "id": identity}}


def test_the_project_of_the_environment(tmp_path, fake, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "of-env")
    for settings, project in (({}, "of-env"), ({"tracker_project": "given"}, "given")):
        Trackers(context(tmp_path, **settings)).start()
        assert fake.made[-1].project == project
    monkeypatch.delenv("WANDB_PROJECT")
    Trackers(context(tmp_path)).start()
    assert fake.made[-1].project == "dcal"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format_version": 2, "trackers": {"wandb": 3}}', '{"format_version": 99}']
)
def test_a_damaged_record_is_an_error(tmp_path, fake, content):
    (tmp_path / "trackers.json").write_text(content)
    with pytest.raises(InputError, match=r"trackers\.json"):
        Trackers(context(tmp_path)).start()
    assert fake.made == []


# --- trackers that fail ---


def test_one_that_cannot_be_started_is_an_error(dcal, small, tmp_path, fake):
    fake.fails = {"start": ConnectionError("no route\nto host")}
    outcome = dcal("train", *small, "--log_with=wandb", "--output_dir", tmp_path / "run")
    assert_refused(outcome, "log_with wandb", "no route to host", "--log_with none")


def test_one_that_fails_later_is_said_once_and_gets_everything_later(tmp_path, fake, monkeypatch):
    warnings: list[str] = []
    now = 0.0
    monkeypatch.setattr(trackers.time, "monotonic", lambda: now)
    started = Trackers(context(tmp_path, warnings))
    started.start()
    (tracker,) = fake.made
    fake.fails = {"log": TimeoutError("down")}
    for epoch in (1, 2, 3):
        started.log(METRICS | {"epoch": epoch})
    now += trackers.RETRY_SECONDS
    started.log(METRICS | {"epoch": 4})
    assert tracker.rows == [] and len(warnings) == 1
    assert_says(warnings[0], "wandb", "down", "training continues")
    fake.fails = {}
    started.log(METRICS | {"epoch": 5})  # not tried: the last failure was just now
    assert tracker.rows == []
    now += trackers.RETRY_SECONDS
    started.log(METRICS | {"epoch": 6})
    assert [row["epoch"] for row in tracker.rows] == [1, 2, 3, 4, 5, 6]
    fake.fails = {"log": TimeoutError("down")}
    started.log(METRICS | {"epoch": 7})
    with started:
        pass
    assert len(warnings) == 2 and "1 of the messages" in warnings[1] and tracker.run.ended == 0


def test_a_training_ends_well_though_its_tracker_fails(dcal, tasks, tmp_path, fake, undisturbed):
    fake.fails = {"log": RuntimeError("server error")}
    outcome = dcal("train", *tasks["fgvc"], "--log_with", "wandb", "tensorboard", "--output_dir", tmp_path / "run")
    assert outcome.status == 0
    assert sum("server error" in line for line in outcome.out.splitlines()) == 1
    assert_same_run(tmp_path / "run", undisturbed("fgvc"))


@pytest.mark.parametrize(("error", "ended"), [(None, 0), (InterruptedRun("x"), 1), (InputError("x"), 1)])
def test_the_end_says_how_it_was(tmp_path, fake, error, ended):
    with suppress(BaseException), Trackers(context(tmp_path)) as started:
        started.start()
        if error:
            raise error
    assert fake.made[-1].run.ended == ended


# --- the libraries themselves ---


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """All that the libraries write lies in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": f"{tmp_path}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": f"{tmp_path}/trackio",
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_tensorboard(dcal, small, tmp_path):
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    train_in_two_parts(dcal, [*small, "--output_dir", tmp_path / "run"])
    rows = rows_of(tmp_path / "run")
    events = accumulator(f"{tmp_path / 'run' / 'tensorboard'}")
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("val/top1")]
    assert scalars == [(row["epoch"], pytest.approx(row["val/top1"], rel=1e-6)) for row in rows]
    (settings,) = events.Tensors("settings/text_summary")
    assert b"epochs: 2" in settings.tensor_proto.string_val[0]
    assert len(events.Images("train_images")) == 1


def test_wandb(dcal, small, offline):
    wandb = pytest.importorskip("wandb")
    run = offline / "run"
    train_in_two_parts(dcal, [*small, "--log_with", "wandb", "--output_dir", run])
    wandb.teardown()  # all is on disk
    rows = rows_of(run)
    identity = RunFolder(run).read_trackers()["wandb"]["id"]
    parts = sorted((run / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(identity) for part in parts)
    history, settings, images = read_wandb(parts)
    assert [(row["_step"], row["val/top1"]) for row in history] == [(r["epoch"], r["val/top1"]) for r in rows]
    assert settings["lr"] == 1e-3 and settings["backbone"] == "vit_tiny_patch16_224"
    assert images == 1


def records_of(path):
    """The records of an offline run of wandb, a file in LevelDB's log format: blocks of 32 KiB, with 7 bytes before."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block that has no room for a header
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its end
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def read_wandb(parts):
    """Rows with metrics, settings, and the number of images of offline runs."""
    history, settings, images = [], {}, 0
    for record in (record for part in parts for record in records_of(next(part.glob("*.wandb")))):
        for each in (*record.config.update, *record.run.config.update):
            settings[each.key or each.nested_key[0]] = json.loads(each.value_json)
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        images += "train_images" in row
        history += [row] if "val/top1" in row else []
    return history, settings, images


def test_mlflow(dcal, small, offline):
    mlflow = pytest.importorskip("mlflow")
    train_in_two_parts(dcal, [*small, "--log_with", "mlflow", "--output_dir", offline / "run"])
    rows = rows_of(offline / "run")
    client = mlflow.MlflowClient()
    (experiment,) = [each for each in client.search_experiments() if each.name == "dcal"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == RunFolder(offline / "run").read_trackers()["mlflow"]["id"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    metrics = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "val/top1")]
    assert metrics == [(row["epoch"], row["val/top1"]) for row in rows]
    assert run.data.params["lr"] == "0.001"
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["train_images.jpg"]


def test_mlflow_takes_a_resumed_run_with_another_number_of_workers(dcal, small, offline):
    """MLflow refuses another value of a parameter of the same run."""
    pytest.importorskip("mlflow")
    flags = [*small, "--log_with", "mlflow", "--output_dir", offline / "run"]
    assert dcal("train", *flags, "--epochs=1").status == 0
    outcome = dcal("train", *flags, "--eval_batch_size=3", "--resume", offline / "run" / "checkpoints" / "epoch_0001")
    assert outcome.status == 0, outcome


def test_mlflow_that_cannot_be_reached(dcal, small, offline, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outcome = dcal("train", *small, "--log_with", "mlflow", "--output_dir", offline / "run")
    assert_refused(outcome, "log_with mlflow", "--log_with none")


def test_trackio(dcal, small, offline):
    pytest.importorskip("trackio")
    train_in_two_parts(dcal, [*small, "--log_with", "trackio", "--output_dir", offline / "run"])
    rows = rows_of(offline / "run")
    name = RunFolder(offline / "run").read_trackers()["trackio"]["id"]
    storage = import_module("trackio.sqlite_storage").SQLiteStorage
    logs = storage.get_logs("dcal", name)
    metrics = [(each["step"], each["val/top1"]) for each in logs if "val/top1" in each]
    assert metrics == [(row["epoch"], row["val/top1"]) for row in rows]
    assert sum("train_images" in each for each in logs) == 1
    assert storage.get_run_config("dcal", name)["lr"] == 1e-3
