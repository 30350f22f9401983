"""Reading a model file that may come from anybody: nothing in it is run, and nothing is built before it fits."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dual_cross_attention.configs import TrainingConfig
from dual_cross_attention.configs.parse import restore_config
from dual_cross_attention.errors import InputError
from dual_cross_attention.messages import printable


class ModelFile(NamedTuple):
    """What a model file holds.

    Args:
        state: the tensors of the model, by their names.
        config: the settings of the run.
        classes: names of what the classifiers tell apart.
        metrics: of its epoch, in percent.
    """

    state: dict[str, Tensor]
    config: TrainingConfig
    classes: list[str]
    metrics: dict[str, float]


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
        raise InputError(f"cannot read '{path}' as .safetensors: {printable(' '.join(str(error).split()))}") from error
    try:
        settings, classes, metrics = (json.loads(metadata[name]) for name in ("config", "classes", "metrics"))
        if not (isinstance(settings, dict) and _is_list_of_names(classes) and _is_numbers(metrics)):
            raise ValueError("expected settings, a list of names, and numbers by name")
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f"'{path}' holds no settings and class names: expected best.safetensors or last.safetensors of a run"
        ) from error
    return ModelFile(state, restore_config(settings, f"the header of '{path}'"), classes, metrics)


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
            f"{printable(first):.80}: expected the shape {expected.get(first)}, got {found.get(first)}"
        )


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(number, int | float) for number in value.values())
