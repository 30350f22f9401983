"""Converts and checks the arguments of the metrics."""

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr


def as_numbers(values, name: str) -> Tensor:
    """A tensor of a tensor, an array, a list of numbers or of rows, or anything else that NumPy can read.

    Lists of Python numbers become PyTorch's default dtype, as `torch.as_tensor` has it; arrays keep theirs.

    Args:
        name: the argument, for the error.

    Raises:
        InputError: rows of different lengths, names, None, and whatever else is not a table of numbers; a sparse
            tensor.
    """
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            raise InputError(f"{name}: expected a dense tensor, got {values.layout}: {name}.to_dense()")
        values = values.detach()
        # One byte has no integer type to be hashed by in `distances`; float32 holds all its values.
        return values.float() if values.is_floating_point() and values.element_size() == 1 else values
    rows = isinstance(values, list | tuple) and len(values) > 0
    try:
        if rows and all(isinstance(row, Tensor) for row in values):
            if values[0].ndim > 1:
                raise InputError(
                    f"{name}: expected one tensor, got {len(values)} of shapes {tuple(values[0].shape)}, …: "
                    f"torch.cat({name})"
                )
            return as_numbers(torch.stack(list(values)), name)
        if isinstance(values, list | tuple) and not (rows and isinstance(values[0], np.ndarray | np.generic)):
            return torch.as_tensor(values)
        array = np.asarray(values)
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
            raise InputError(f"{name}: expected numbers, got {type(values).__name__} of {array.dtype}")
        # PyTorch reads neither negative strides nor the other byte order.
        return torch.as_tensor(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
    except InputError:
        raise
    except Exception as error:  # arrays of other libraries raise any type
        reason = " ".join(f"{error}".split())
        raise InputError(
            f"{name}: expected numbers as a tensor, an array or a list, got {type(values).__name__}: {reason:.200}"
        ) from None


def as_integers(values, name: str, features: Tensor) -> Tensor:
    """Converts to one int64 per row of the features, on their device.

    Raises:
        InputError: another number of them, or not integers.
    """
    try:
        numbers = as_numbers(values, name)
    except InputError as error:
        reason = f"{error}".split(", got ", 1)[-1]
        raise InputError(
            f"{name}: expected integers, got {reason}; np.unique(names, return_inverse=True)[1] numbers names, "
            "those of query and gallery together"
        ) from None
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        convert = f"{name}.to(torch.int64)" if isinstance(values, Tensor) else f"np.asarray({name}).astype(int)"
        raise InputError(f"{name}: expected integers, got {numbers.dtype}: {convert} converts whole numbers")
    if numbers.shape != features.shape[:1]:
        raise InputError(
            f"{name}: expected {len(features)} integers, one per row of features; got shape {tuple(numbers.shape)}"
        )
    if numbers.dtype == torch.uint64 and (largest := int(numbers.numpy(force=True).max())) >= 2**63:
        raise InputError(f"{name}: expected integers below 2^63, got {largest}")
    return numbers.to(features.device, torch.int64)


def as_pair(
    query, gallery, name: str, query_features: Tensor, gallery_features: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Optional integers of both sides, see `as_integers`; None if they are given for neither.

    Args:
        name: what they are, such as "cameras".

    Raises:
        InputError: they are given for one side only, or are not integers, one per row of features.
    """
    if query is None and gallery is None:
        return None
    if query is None or gallery is None:
        raise InputError(f"{name}: expected those of query and gallery, or of neither, got those of one side only")
    return (
        as_integers(query, f"query_{name}", query_features),
        as_integers(gallery, f"gallery_{name}", gallery_features),
    )


def at_least_1(name: str, value: Any) -> int:
    """`value` as an int of at least 1.

    Raises:
        InputError: it is not one.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name}: expected at least 1, got {short_repr(value)}: it must be a whole number")
    return number
