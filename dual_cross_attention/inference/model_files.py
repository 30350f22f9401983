"""Models with all that is needed to use them; a file of one may come from anybody.

A model file is a `.safetensors`: the state dict of `DualCrossAttentionViT`, and in the header's metadata, as JSON, the
settings ("config"), the class names ("classes"), the versions and the metrics of that epoch. Nothing is unpickled.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.parse import restore_config
from dual_cross_attention.configs.versions import FORMAT_VERSION, check_header_version
from dual_cross_attention.data.fingerprint import DataFingerprint
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.dual_vit import DualCrossAttentionViT
from dual_cross_attention.models.factory import create_model
from dual_cross_attention.runs.run_folder import RunFolder, versions
from dual_cross_attention.tasks.branch_schedule import branch_schedule
from dual_cross_attention.text import escape
from dual_cross_attention.weights.fitting import check_finite


@dataclass
class SavedModel:
    """A model read back, in evaluation mode."""

    model: DualCrossAttentionViT
    config: TrainingConfig
    classes: list[str]
    metrics: dict[str, float]
    data: DataFingerprint | None = None


def build_model(config: TrainingConfig, num_classes: int, pretrained: bool | str) -> DualCrossAttentionViT:
    """The model that the settings describe; `pretrained` as in `create_model`, of whose paths they say more."""
    of_a_file = {"weights_key": config.weights_key, "weights_img_size": config.weights_img_size}
    return create_model(
        config.backbone,
        num_classes,
        task=config.task,
        img_size=tuple(config.img_size),
        ablation=config.ablation,
        local_ratio=config.local_ratio,
        pretrained=pretrained,
        glca_init=config.glca_init,
        distractor_stream=config.distractor_stream,
        pwca_blocks=config.pwca_blocks,
        distractor_tokens=config.distractor_tokens,
        local_queries=config.local_queries,
        glca_blocks=config.glca_blocks,
        drop_path_rate=config.drop_path_rate,
        **(of_a_file if isinstance(pretrained, str) else {}),
        **config.backbone_kwargs,
    )


def save_model(
    path: Path,
    state: dict[str, Tensor],
    config: TrainingConfig,
    classes: list[str],
    metrics: dict[str, float],
    data: DataFingerprint | None = None,
) -> None:
    """A model's state dict, settings, class names and data fingerprint into one file, written atomically.

    Raises:
        OSError, SafetensorError: it cannot be written; what was there still is.
    """
    metadata = {
        "config": json.dumps(asdict(config)),
        "classes": json.dumps(classes),
        "metrics": json.dumps(metrics),
        "versions": json.dumps(versions()),
        "format_version": f"{FORMAT_VERSION}",
    }
    if data:
        metadata["data"] = data.to_json()
    with atomic_write(path) as temporary:
        save_file({name: value.contiguous() for name, value in state.items()}, temporary, metadata)


def find_model_file(run_or_checkpoint: str | Path) -> Path:
    """A run's best model, or the file itself.

    Raises:
        InputError: neither.
    """
    path = Path(run_or_checkpoint)
    candidates = [RunFolder(path).best, RunFolder(path).last] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"no model at '{path}': expected a run's folder (with best.safetensors) or a .safetensors file of one"
    )


def load_model(run_or_checkpoint: str | Path) -> SavedModel:
    """A trained model from a run's folder (its best) or a file, on CPU and in evaluation mode.

    Raises:
        InputError: nothing there, or not a file that `save_model` wrote.
    """
    path = find_model_file(run_or_checkpoint)
    state, config, classes, metrics, data = read_model_file(path)
    with torch.device("meta"):  # takes no memory, whatever size the header claims
        check_fits(build_model(config, len(classes), pretrained=False), state, path)
    model = build_model(config, len(classes), pretrained=False)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"'{path}' does not fit the settings in its header: {' '.join(str(error).split())}") from error
    # Its last steps were those of its epoch; of models that do not name one, all.
    model.glca_is_trained = branch_schedule(config).glca_is_on(metrics.get("epoch", config.epochs), config.epochs)
    check_finite(state, str(path))
    if isinstance(config.mean, list):  # for timm's resolve_data_config
        named = {"mean": tuple(config.mean), "std": tuple(config.std)}
        model.backbone.pretrained_cfg = {**model.backbone.pretrained_cfg, **named}
    return SavedModel(model.eval(), config, classes, metrics, data)


class ModelFile(NamedTuple):
    """What a model file holds.

    Args:
        state: the tensors of the model, by their names.
        config: the settings of the run.
        classes: names of what the classifiers tell apart.
        metrics: of its epoch, in percent.
        data: what it was trained on; None of a file of format 1, which did not record it.
    """

    state: dict[str, Tensor]
    config: TrainingConfig
    classes: list[str]
    metrics: dict[str, float]
    data: DataFingerprint | None


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
        raise InputError(f"cannot read '{path}' as .safetensors: {escape(' '.join(str(error).split()))}") from error
    check_header_version(metadata, f"the header of '{path}'")
    try:
        settings, classes, metrics = (json.loads(metadata[name]) for name in ("config", "classes", "metrics"))
        if not (isinstance(settings, dict) and _is_list_of_names(classes) and _is_numbers(metrics)):
            raise ValueError("expected settings, a list of names, and numbers by name")
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f"'{path}' holds no settings and class names: expected best.safetensors or last.safetensors of a run"
        ) from error
    data = DataFingerprint.from_json(metadata["data"], f"the header of '{path}'") if "data" in metadata else None
    return ModelFile(state, restore_config(settings, f"the header of '{path}'"), classes, metrics, data)


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
