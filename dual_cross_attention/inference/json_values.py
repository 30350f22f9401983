"""Values out of untrusted JSON: what each must be, and an error of one line where it is something else."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr

LARGEST_COUNT = 10**12


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turns what reading a calibration raises into an InputError that names `source`."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(
            f"{source}: calibration cannot be read ({type(error).__name__}: {escape(error):.200})"
        ) from error


def number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number between two limits, as a float.

    Raises:
        ValueError: it is not one.
    """
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
        limits = f" from {low:g} to {high:g}" if (low, high) != (-math.inf, math.inf) else ""
        raise ValueError(f"expected a finite number{limits}, got {short_repr(value)}")
    return float(value)


def count(value: Any) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: it is not one.
    """
    if type(value) is not int or not 1 <= value <= LARGEST_COUNT:
        raise ValueError(f"expected a whole number of at least 1, got {short_repr(value)}")
    return value


def text(value: Any) -> str:
    """Text.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {short_repr(value)}")
    return value
