"""Experiment trackers of a run: TensorBoard, Weights & Biases, MLflow and Trackio, by Accelerate's tracker classes.

Notable:
- a tracker that cannot be started is an error; one that fails later is said once, and what it did not take is kept and
  sent again, at most every `RETRY_SECONDS`: the training continues in any case;
- which run of a tracker belongs to a run folder is recorded in its trackers.json, so that a run that resumes continues
  there;
- only rank 0 has trackers.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import yaml
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from dual_cross_attention.errors import InputError, InterruptedRun
from dual_cross_attention.training.run_context import RunContext

CLASSES: dict[str, type[GeneralTracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandBTracker,
    "mlflow": MLflowTracker,
    "trackio": TrackioTracker,
}
"""Accelerate's classes by the names of `--log_with`, which are those of the packages too."""
PROJECT = "dcal"
PROJECT_VARIABLES = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}
RETRY_SECONDS = 60.0
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Environment variables of MLflow, where the user has not set them: its own would stop a training for minutes."""

Outcome = Literal["finished", "interrupted", "failed"]


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers whose packages are not installed, which Accelerate would skip without a word.

    Raises:
        InputError: one is not installed.
    """
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name is no package: wandb makes one
            raise InputError(f"log_with {name}: it is not installed: pip install {name}, or take it out of --log_with")


class Trackers:
    """Sends settings, metrics and images of a run to the trackers of its settings.

    As a context, it ends the trackers' runs, and tells them how the training ended.

    Args:
        run: settings, folder and console.
    """

    def __init__(self, run: RunContext):
        self.run = run
        self._connections: dict[str, _Connection] = {}

    def start(self) -> None:
        """Starts a run in each tracker, or continues the one that trackers.json names.

        Raises:
            InputError: a tracker cannot be started, or trackers.json cannot be read or written.
        """
        folder = self.run.folder
        known = folder.read_trackers()
        identities = dict(known)
        before = random.getstate(), np.random.get_state()  # Trackio's import draws from Python's generator
        try:
            for name in self.run.config.trackers:
                self._start(name, known, identities)
        except InputError:
            self._finish("failed")
            raise
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
        if identities != known:
            try:
                folder.write_trackers(identities)
            except OSError as error:
                raise InputError(f"cannot write '{folder.trackers}': {error.strerror}") from error

    def _start(self, name: str, known: dict[str, dict[str, str]], identities: dict[str, dict[str, str]]) -> None:
        project = self.run.config.tracker_project or os.environ.get(PROJECT_VARIABLES.get(name, ""), "") or PROJECT
        continued = known.get(name, {})
        if continued.get("project") != project:
            continued = {}
        try:
            tracker = _create(name, project, self.run, continued.get("id"))
            tracker.start()
            self._connections[name] = _Connection(name, tracker, self.run.warn)
            if name == "tensorboard":
                if not self.run.folder.metrics.exists():
                    tracker.tracker.add_text("settings", f"```yaml\n{_settings_text(self.run)}```")
                return
            if not (continued and name == "mlflow"):  # which refuses other values of a setting, such as num_workers
                _send_settings(name, tracker, asdict(self.run.config))
        except OSError as error:
            if name != "tensorboard":
                raise self._refusal(name, continued, error) from error
            self.run.warn(f"cannot write TensorBoard's events: {error}; the training continues without them")
        except Exception as error:  # of any type: each library has its own
            raise self._refusal(name, continued, error) from error
        else:
            identities[name] = {"project": project, "id": _id_of(name, tracker)}
            verb = "continues" if continued else "is"
            self.run.console.print(f"{name}: the run {verb} {identities[name]['id']} of project {project}")

    def _refusal(self, name: str, continued: dict[str, str], error: Exception) -> InputError:
        reason = _one_line(error)
        where = f" with run {continued['id']} of '{self.run.folder.trackers}'" if continued else ""
        return InputError(f"log_with {name}: it cannot be started{where} ({reason}); --log_with none trains without it")

    def log(self, row: dict[str, float]) -> None:
        """Sends the metrics of an epoch.

        Args:
            row: of metrics.jsonl.
        """
        values = {name: value for name, value in row.items() if name != "epoch"}
        for name, connection in self._connections.items():
            at_once = {"commit": True} if name == "wandb" else {}  # which else waits for the next epoch
            connection.send(_call(connection.tracker.log, values, step=int(row["epoch"]), **at_once))

    def log_image(self, name: str, image: Image.Image) -> None:
        """Sends an image in RGB."""
        for tracker, connection in self._connections.items():
            connection.send(_call(_send_image, tracker, connection.tracker, name, image))

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish("finished")
        else:
            self._finish("interrupted" if issubclass(kind, InterruptedRun) else "failed")

    def _finish(self, outcome: Outcome) -> None:
        """Sends what is left, and ends the trackers' runs."""
        for name, connection in self._connections.items():
            connection.finish(_call(_end, name, connection.tracker, outcome))
        self._connections = {}


class _Connection:
    """A tracker, and what it has not taken yet.

    Args:
        name: of the tracker.
        tracker: a tracker that has been started.
        warn: shows a warning.
    """

    def __init__(self, name: str, tracker: Any, warn: Callable[[str], None]):
        self.name, self.tracker, self.warn = name, tracker, warn
        self._pending: list[Callable[[], None]] = []
        self._has_warned = False
        self._retry_at = 0.0

    def send(self, action: Callable[[], None]) -> None:
        """Runs an action, after those that failed before; one that fails is kept."""
        self._pending.append(action)
        if time.monotonic() >= self._retry_at:
            self._run_pending()

    def _run_pending(self) -> None:
        try:
            while self._pending:
                self._pending[0]()
                del self._pending[0]
        except Exception as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if not self._has_warned:
                self._has_warned = True
                self.warn(
                    f"{self.name} does not take what the run sends ({_one_line(error)}): the training continues, and "
                    "sends it again later; metrics.jsonl has all metrics"
                )

    def finish(self, end: Callable[[], None]) -> None:
        """Runs what failed before once more, then `end`."""
        self._run_pending()
        left = len(self._pending)
        if left:
            self.warn(f"{self.name} did not take {left} of the messages of this run; metrics.jsonl has all metrics")
        try:
            end()
        except Exception as error:
            if not left:
                self.warn(f"{self.name} could not be closed: {_one_line(error)}")


def _create(name: str, project: str, run: RunContext, identity: str | None) -> Any:
    """Accelerate's tracker, not started.

    Args:
        identity: of the tracker's run that continues; None: a new one.
    """
    title = run.folder.path.resolve().name
    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", logging_dir=str(run.folder.path))
    if name == "wandb":
        return WandBTracker(project, id=identity, resume="allow", name=title, dir=str(run.folder.path))
    if name == "mlflow":
        for variable, value in MLFLOW_PATIENCE.items():
            os.environ.setdefault(variable, value)
        tracker = MLflowTracker(project, run_id=identity, run_name=title)
        tracker.experiment_name = project  # Accelerate prefers MLFLOW_EXPERIMENT_NAME, also to --tracker_project
        return tracker
    # Trackio continues a run by its name, which is to be that of one run folder.
    unique = identity or f"{title}-{os.urandom(3).hex()}"
    return TrackioTracker(project, name=unique, resume="allow" if identity else "never", embed=False)


def _id_of(name: str, tracker: Any) -> str:
    if name == "mlflow":
        return str(tracker.tracker.info.run_id)
    return str(tracker.tracker.name if name == "trackio" else tracker.tracker.id)


def _send_settings(name: str, tracker: Any, settings: dict[str, Any]) -> None:
    if name == "trackio":
        tracker.tracker.config.update(settings)  # Accelerate would add a setting "allow_val_change"
    else:
        tracker.store_init_configuration(settings)


def _settings_text(run: RunContext) -> str:
    return yaml.safe_dump(asdict(run.config), sort_keys=False)


def _send_image(name: str, tracker: Any, title: str, image: Image.Image) -> None:
    if name == "tensorboard":
        tracker.log_images({title: np.asarray(image)[None]}, step=0, dataformats="NHWC")
    elif name == "wandb":
        tracker.log_images({title: [image]}, step=0)
    elif name == "mlflow":
        import mlflow

        mlflow.log_image(image, f"{title}.jpg")
    else:
        import trackio

        tracker.log({title: trackio.Image(image)}, step=0)


def _end(name: str, tracker: Any, outcome: Outcome) -> None:
    if name == "wandb":
        tracker.tracker.finish(exit_code=0 if outcome == "finished" else 1)
    elif name == "mlflow":
        import mlflow

        mlflow.end_run({"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[outcome])
    else:
        tracker.finish()


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], None]:
    return lambda: function(*arguments, **options)


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__
