"""The schema of a checkpoint's `progress.json`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dual_cross_attention.text import short_repr
from dual_cross_attention.training.step_log import Sums
from dual_cross_attention.training.train_state import TrainState

Row = dict[str, float]


@dataclass(frozen=True)
class TrainProgress:
    """What a checkpoint records beside tensors.

    Args:
        state: position of the training.
        batches_per_step: micro-batches of an optimizer step, over all ranks; fixed at the start of a run.
        num_images: training images ("pictures" in files).
        rows: rows of metrics.jsonl that are not written yet.
        sums, latest: of the current epoch's scalars, see `StepLog`.
        unreadable: reasons by path.
        classes: class names.
    """

    state: TrainState
    batches_per_step: int
    num_images: int
    rows: list[Row]
    sums: Sums
    latest: Row
    unreadable: dict[str, str]
    classes: list[str] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The content of `progress.json`, without its format version."""
        return {
            "epoch": self.state.epoch,
            "step": self.state.step,
            "step_in_epoch": self.state.step_in_epoch,
            "batches_per_step": self.batches_per_step,
            "pictures": self.num_images,
            "best": self.state.best,
            "rows": self.rows,
            "log": {"sums": self.sums, "latest": self.latest},
            "unreadable": self.unreadable,
            "classes": self.classes,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TrainProgress":
        """Reads what `to_json` returns; other keys are ignored.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: it is something else.
        """
        for name, (is_valid, expected) in _SCHEMA.items():
            if not is_valid(content[name]):
                raise ValueError(f"{name} is {short_repr(content[name])}, expected {expected}")
        return cls(
            state=TrainState(content["epoch"], content["step"], content["step_in_epoch"], content["best"]),
            batches_per_step=content["batches_per_step"],
            num_images=content["pictures"],
            rows=content["rows"],
            sums=content["log"]["sums"],
            latest=content["log"]["latest"],
            unreadable=content["unreadable"],
            classes=content["classes"],
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_valid, value))


def _is_dict(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_valid, value.values()))


def _is_row(value: Any) -> bool:
    return _is_dict(value, _is_number) and _is_count(value.get("epoch"))


def _is_sum(value: Any) -> bool:
    return _is_list(value, _is_number) and len(value) == 2


def _is_log(value: Any) -> bool:
    return (
        isinstance(value, dict) and _is_dict(value.get("sums"), _is_sum) and _is_dict(value.get("latest"), _is_number)
    )


_SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epoch": (_is_count, "a count"),
    "step": (_is_count, "a count"),
    "step_in_epoch": (_is_count, "a count"),
    "batches_per_step": (lambda value: _is_count(value) and value > 0, "a count of at least 1"),
    "pictures": (_is_count, "a count"),
    "best": (lambda value: value == {} or _is_row(value), "a row of metrics.jsonl, or {}"),
    "rows": (lambda value: _is_list(value, _is_row), "rows of metrics.jsonl"),
    "log": (_is_log, "sums and latest values by name"),
    "unreadable": (lambda value: _is_dict(value, _is_text), "reasons by path"),
    "classes": (lambda value: value and _is_list(value, _is_text), "a list of names"),
}
"""By key of the file: whether a value is valid, and what is expected."""
