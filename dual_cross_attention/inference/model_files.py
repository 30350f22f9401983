"""Model files: weights with settings, class names and preprocessing. Files are untrusted.

A model file is a `.safetensors`: the state dict of `DualCrossAttentionViT`, and in the header's metadata, as JSON, the
settings ("config"), the class names ("classes"), the preprocessing of images, the versions and the metrics of that
epoch; "calibration" and "chosen_by" where they are known. Nothing is unpickled.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs import ReIDConfig, TrainingConfig
from dual_cross_attention.configs.parse import restore_config
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_header_version
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.devices import available_precision, choose_device, choose_precision
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibration_lines import with_calibration
from dual_cross_attention.inference.calibrations import AnyCalibration, read_calibration
from dual_cross_attention.inference.onnx_model import OnnxModel
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.models.factory import create_model
from dual_cross_attention.runs.run_folder import RunFolder, versions
from dual_cross_attention.tasks.branch_schedule import branch_schedule
from dual_cross_attention.tasks.data_module import preprocessing_of
from dual_cross_attention.text import escape
from dual_cross_attention.weights.fitting import check_finite

BEST_ON_TEST, LAST_EPOCH = "best score on the test split", "last epoch"
CHOSEN_BY = {
    "best.safetensors": BEST_ON_TEST,
    "last.safetensors": LAST_EPOCH,
    "best_raw.safetensors": BEST_ON_TEST,
    "last_raw.safetensors": LAST_EPOCH,
}
"""How the epoch of a model file was chosen."""
PRETRAINED_NAME = "model.safetensors"
"""File name of the model in a directory of `save_pretrained`."""


@dataclass
class SavedModel:
    """A model read from a file, in evaluation mode."""

    model: DualCrossAttentionViT | OnnxModel
    config: TrainingConfig
    classes: list[str]
    metrics: dict[str, float]
    data: DataFingerprint | None
    preprocessing: Preprocessing
    calibration: AnyCalibration | None = None
    chosen_by: str | None = None

    def choose_device(self, given: str = "auto") -> torch.device:
        """As `devices.choose_device`; an exported graph is always on the CPU.

        Raises:
            InputError: this machine, or ONNX Runtime here, does not have the given one.
        """
        if isinstance(self.model, OnnxModel):
            self.model.check_hardware(given, None)
            given = "cpu"
        return choose_device(given)

    def choose_precision(self, device: torch.device, given: str | None = None) -> str:
        """Accelerate's name of the precision of an evaluation, see `devices.choose_precision`.

        Args:
            device: where it runs.
            given: by the user; None: that of the run, if the device has it.

        Raises:
            InputError: the device, or the exported graph, does not have the given one.
        """
        if isinstance(self.model, OnnxModel):
            self.model.check_hardware(device.type, given)
            return "no"  # ONNX Runtime does not see autocast
        wanted = given or available_precision(self.config.precision, device)
        return choose_precision(wanted, device, self.config.format_version)


ARCHITECTURE = (
    "task",
    "backbone",
    "backbone_kwargs",
    "img_size",
    "ablation",
    "local_ratio",
    "local_queries",
    "glca_blocks",
)
"""Settings that decide what a model with given weights computes at inference."""
ARGUMENTS = (
    *("task", "ablation", "local_ratio", "local_queries", "glca_blocks", "glca_init"),
    *("distractor_stream", "distractor_tokens", "pwca_blocks", "drop_path_rate"),
)
"""Settings that are arguments of `create_model`, under the same name."""


def uses_cameras(config: TrainingConfig) -> TypeGuard[ReIDConfig]:
    """Whether the settings are of a model with an embedding of cameras or views."""
    return isinstance(config, ReIDConfig) and config.sie != "none"


def build_model(config: TrainingConfig, num_classes: int, pretrained: bool | str) -> DualCrossAttentionViT:
    """Builds the model of the settings. `pretrained` as in `create_model`; `weights_*` apply if it is a path.

    Raises:
        InputError: as of `create_model`; and `backbone_kwargs` with what is a setting of its own.
    """
    options: dict[str, Any] = {name: getattr(config, name) for name in ARGUMENTS} | {
        "img_size": tuple(config.img_size),
        "pretrained": pretrained,
        "distractor_noise": config.distractors == "noise",
        **({"cameras": config.num_side_vectors, "camera_scale": config.sie_coe} if uses_cameras(config) else {}),
    }
    if isinstance(pretrained, str):
        options |= {"weights_key": config.weights_key, "weights_img_size": config.weights_img_size}
    for name in sorted(config.backbone_kwargs.keys() & {*options, "backbone", "num_classes"}):
        advice = f": take --{name}" if hasattr(config, name) else ""
        raise InputError(f"backbone_kwargs: expected arguments of timm without a setting, got '{name}'{advice}")
    return create_model(config.backbone, num_classes, **options, **config.backbone_kwargs)


def save_model(
    path: Path,
    state: dict[str, Tensor],
    config: TrainingConfig,
    classes: list[str],
    metrics: dict[str, float],
    data: DataFingerprint | None = None,
    preprocessing: Preprocessing | None = None,
    calibration: AnyCalibration | None = None,
    chosen_by: str | None = None,
) -> None:
    """Writes a model's state dict, settings, class names and data fingerprint into one file, atomically.

    Args:
        preprocessing: of images; None: as the settings say, if they give mean and std as numbers.
        calibration: None: the model is not calibrated.
        chosen_by: `BEST_ON_TEST` or `LAST_EPOCH`: how the epoch was chosen; None: as the name of the file says.

    Raises:
        OSError, SafetensorError: it cannot be written; an existing file is unchanged.
    """
    metadata = header_of(path, config, classes, metrics, data, preprocessing, calibration, chosen_by)
    with atomic_write(path) as temporary:
        save_file({name: value.contiguous() for name, value in state.items()}, temporary, metadata)


def header_of(
    path: Path,
    config: TrainingConfig,
    classes: list[str],
    metrics: dict[str, float],
    data: DataFingerprint | None,
    preprocessing: Preprocessing | None,
    calibration: AnyCalibration | None,
    chosen_by: str | None,
) -> dict[str, str]:
    """The entries of a model file's header, which `read_header` reads; arguments as of `save_model`."""
    metadata = {
        "config": json.dumps(asdict(config)),
        "classes": json.dumps(classes),
        "metrics": json.dumps(metrics),
        "versions": json.dumps(versions()),
        "format_version": f"{FORMAT_VERSION}",
    }
    if data:
        metadata["data"] = data.to_json()
    if preprocessing is None and isinstance(config.mean, list):
        preprocessing = preprocessing_of(config, None)
    if preprocessing:
        metadata["preprocessing"] = preprocessing.to_json()
    if calibration is not None:
        metadata["calibration"] = calibration.to_json()
    if chosen_by := chosen_by or CHOSEN_BY.get(path.name):
        metadata["chosen_by"] = chosen_by
    return metadata


def find_model_file(run_or_checkpoint: str | Path) -> Path:
    """Resolves a run's folder (its best model), a directory of `save_pretrained`, a file, or "hf:ORG/NAME@REVISION" (a
    model on the Hugging Face Hub, which is downloaded) to the model file.

    Raises:
        InputError: none of these.
    """
    if f"{run_or_checkpoint}".startswith("hf:"):
        from dual_cross_attention.inference.hub import download_model

        return download_model(f"{run_or_checkpoint}")
    path = Path(run_or_checkpoint)
    in_folder = [RunFolder(path).best, RunFolder(path).last, path / PRETRAINED_NAME]
    candidates = in_folder if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"no model at '{path}': expected a run's folder (with best.safetensors), a .safetensors file of one, a "
        "directory of save_pretrained, an .onnx file of dcal export, or hf:ORG/NAME"
    )


def read_model(run_or_checkpoint: str | Path) -> SavedModel:
    """Reads a trained model from a run's folder (its best), a directory of `save_pretrained`, a file, or an exported
    .onnx file, on CPU and in evaluation mode.

    Raises:
        InputError: nothing there, or not a file that `save_model` wrote.
    """
    path = find_model_file(run_or_checkpoint)
    if path.suffix == ".onnx":
        from dual_cross_attention.inference.onnx_files import read_onnx

        return read_onnx(path)
    file = read_model_file(path)
    config, metrics = file.config, file.metrics
    with torch.device("meta"):  # takes no memory, whatever size the header claims
        model = build_model(config, len(file.classes), pretrained=False)
    check_fits(model, file.state, path)
    check_finite(file.state, str(path))
    model = _with_weights(model, file)
    # Its last steps were those of its epoch; of models that do not name one, all.
    model.glca_is_trained = branch_schedule(config).glca_is_on(metrics.get("epoch", config.epochs), config.epochs)
    if file.calibration:
        file.calibration.check_fits(model.test_branches, model.predicting_branches, f"the header of '{path}'")
    if isinstance(config.mean, list):  # for timm's resolve_data_config
        named = {"mean": tuple(config.mean), "std": tuple(config.std)}
        model.backbone.pretrained_cfg = {**model.backbone.pretrained_cfg, **named}
    preprocessing = file.preprocessing or preprocessing_of(config, model)
    chosen_by = file.chosen_by or CHOSEN_BY.get(path.name)
    return SavedModel(
        model.eval(), config, file.classes, metrics, file.data, preprocessing, file.calibration, chosen_by
    )


def _with_weights(model: DualCrossAttentionViT, file: "ModelFile") -> DualCrossAttentionViT:
    """A model that was built on the device "meta", with the weights of a file that fit it, on CPU."""
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    # Copied, since tensors lie anywhere in a file, and kernels round differently where they are not aligned.
    state = {name: tensor.to(dtypes[name], copy=True) for name, tensor in file.state.items()}
    # Random weights are not drawn first: that takes longer than reading those of the file.
    model.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):  # a buffer that files do not have
        model = build_model(file.config, len(file.classes), pretrained=False)
        model.load_state_dict(state)
    return model


class ModelFile(NamedTuple):
    """What a model file holds.

    Args:
        state: the tensors of the model, by their names.
        config: the settings of the run.
        classes: names of what the classifiers tell apart.
        metrics: of its epoch, in percent.
        data: what it was trained on; None of a file of format 1, which did not record it.
        preprocessing: of images; None of files that were written before it was recorded.
        calibration: None of a model that is not calibrated.
        chosen_by: how its epoch was chosen, where the file says so.
    """

    state: dict[str, Tensor]
    config: TrainingConfig
    classes: list[str]
    metrics: dict[str, float]
    data: DataFingerprint | None
    preprocessing: Preprocessing | None = None
    calibration: AnyCalibration | None = None
    chosen_by: str | None = None


def read_model_file(path: Path) -> ModelFile:
    """A `.safetensors` with the header that `save_model` writes.

    Raises:
        InputError: it is none, or its header is not that of a run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        state = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        if path.suffix == ".onnx":
            raise InputError(f"'{path}' is an exported model: expected the model that it was exported from") from error
        raise InputError(f"cannot read '{path}' as .safetensors: {escape(' '.join(str(error).split()))}") from error
    return read_header(metadata, state, path)


def read_header(metadata: dict[str, str], state: dict[str, Tensor], path: Path) -> ModelFile:
    """Reads the entries that `save_model` writes into the header of a file.

    Args:
        metadata: by name, untrusted.
        state: the tensors of the file; empty where the weights are part of a graph.
        path: of the file, for errors.

    Raises:
        InputError: entries are missing, invalid, or of a later version.
    """
    check_header_version(metadata, f"the header of '{path}'")
    try:
        settings, classes, metrics = (json.loads(metadata[name]) for name in ("config", "classes", "metrics"))
        if not (isinstance(settings, dict) and _is_list_of_names(classes) and _is_numbers(metrics)):
            raise ValueError("expected settings, a list of names, and numbers by name")
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f"'{path}' holds no settings and class names: expected best.safetensors or last.safetensors of a run"
        ) from error
    source = f"the header of '{path}'"
    config = restore_config(settings, source)
    data = DataFingerprint.from_json(metadata["data"], source) if "data" in metadata else None
    preprocessing, calibration = None, None
    if "preprocessing" in metadata:
        preprocessing = Preprocessing.from_json(metadata["preprocessing"], source)
        if list(preprocessing.img_size) != config.img_size:
            raise InputError(
                f"{source}: preprocessing has img_size {preprocessing.img_size}, and the settings {config.img_size}"
            )
    if "calibration" in metadata:
        calibration = read_calibration(metadata["calibration"], config.task, source)
    return ModelFile(state, config, classes, metrics, data, preprocessing, calibration, metadata.get("chosen_by"))


def write_calibration(source: Path, target: Path, calibration: AnyCalibration, chosen_by: str | None) -> None:
    """A model file with another calibration, written atomically; everything else of the header, and the tensors bit by
    bit, are those of the source.

    Args:
        source: a model file.
        target: may be the source. In a directory of `save_pretrained`, config.json and the section of the model card
            get the calibration too.
        calibration: what is written.
        chosen_by: as of `save_model`; a copy may have a name that does not say it.

    Raises:
        InputError: it cannot be written; an existing file is unchanged.
    """
    try:
        with safe_open(source, framework="pt") as file:
            metadata = dict(file.metadata())
        metadata["calibration"] = calibration.to_json()
        if chosen_by:
            metadata["chosen_by"] = chosen_by
        target = target.resolve()  # else a link would be replaced by the file
        with atomic_write(target) as temporary:
            save_file(load_file(source), temporary, metadata)
        described = target.with_name("config.json")
        if target.name == PRETRAINED_NAME and described.is_file():
            values = json.loads(described.read_text(encoding="utf-8"))
            values["calibration"] = json.loads(calibration.to_json())
            with atomic_write(described) as temporary:
                temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        card = target.with_name("README.md")
        if target.name == PRETRAINED_NAME and card.is_file():
            changed = with_calibration(card.read_text(encoding="utf-8"), calibration)
            with atomic_write(card) as temporary:
                temporary.write_text(changed, encoding="utf-8")
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write the calibration to '{target}': {reason}") from error


def check_fits(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Compares a model that was built on the device "meta", which takes no memory, with the tensors of a file.

    Raises:
        InputError: they have other names or shapes.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        first = odd[0]
        raise InputError(
            f"'{path}' does not fit the settings in its header: {len(odd):,} of its tensors, such as "
            f"{escape(first):.80}: expected the shape {expected.get(first)}, got {found.get(first)}"
        )


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(number, int | float) for number in value.values())
