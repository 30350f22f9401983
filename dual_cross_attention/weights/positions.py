"""Position embeddings of a file for another grid of patches.

timm guesses the source's grid from the model's name and the number of tokens, so that 18×32 patches pass for 24×24.
Here it is known (from the file's metadata, or `--weights_img_size`), square where nothing else is known, or an error.
"""

import math
from typing import NamedTuple

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from dual_cross_attention.errors import InputError

Grid = tuple[int, int]
"""Patches: rows, columns."""


class SourceGrid(NamedTuple):
    """What is known of the grid of a file's position embedding.

    Args:
        img_size: (height, width) in pixels, or None.
        patch: (height, width) of the file's patches in pixels, or None.
        given_by: source of `img_size`, for messages; None: unreliable, so a size that does not match is ignored.
        interpolation, antialias: as of `torch.nn.functional.interpolate`.
    """

    img_size: tuple[int, int] | None
    patch: tuple[int, int] | None
    given_by: str | None = None
    interpolation: str = "bicubic"
    antialias: bool = True


class Resampled(NamedTuple):
    """A position embedding on another grid.

    Args:
        embedding: (1, prefix + rows × columns, D).
        line: what was done, to be shown.
        is_guess: whether nothing confirms the grid that was taken for the source's.
    """

    embedding: Tensor
    line: str
    is_guess: bool = False


def resample_positions(embedding: Tensor, source: SourceGrid, target: Grid, prefix: int) -> Resampled:
    """A position embedding for the grid `target`; on the same grid it is returned as it is, bit for bit.

    Args:
        embedding: (1, prefix + N, D).
        source: what is known of its grid.
        target: (rows, columns).
        prefix: position tokens of the class token and such, which come first and are kept.

    Raises:
        InputError: the grid of the source cannot be known, or is not the one that was given.
    """
    count = embedding.shape[1] - prefix
    grid, is_guess = _source_grid(count, source, target, prefix)
    if grid == target:
        unsure = f", assumed since {count} tokens fit it; --weights_img_size H W says otherwise" if is_guess else ""
        return Resampled(embedding, f"position embedding {_grid_text(grid)}, unchanged{unsure}", is_guess)
    resampled = resample_abs_pos_embed(
        embedding,
        new_size=list(target),
        old_size=list(grid),
        num_prefix_tokens=prefix,
        interpolation=source.interpolation,
        antialias=source.antialias,
    )
    return Resampled(resampled, f"position embedding {_grid_text(grid)} → {_grid_text(target)}")


def _source_grid(count: int, source: SourceGrid, target: Grid, prefix: int) -> tuple[Grid, bool]:
    """The grid, and whether it is one of several readings."""
    if source.img_size and (patch := source.patch):
        grid = source.img_size[0] // patch[0], source.img_size[1] // patch[1]
        if grid[0] * grid[1] == count:
            return grid, False
        if source.given_by:
            raise InputError(
                f"{source.given_by} says {source.img_size[0]}x{source.img_size[1]}, so {_grid_text(grid)} patches of "
                f"{patch[0]}x{patch[1]}, but the file has {count} position tokens after {prefix} prefix tokens"
                f"{_layout(count + prefix, prefix)}"
            )
    side = math.isqrt(max(count, 0))
    is_square, is_target = side * side == count > 0, count == target[0] * target[1]
    if is_square and is_target and target[0] != target[1]:
        raise InputError(
            f"{count} position tokens can be a grid of {_grid_text((side, side))} or the model's {_grid_text(target)}: "
            "give the image size that the file was trained at, --weights_img_size "
            f"{_sizes((side, side), target, source.patch)}"
        )
    if is_square:
        return (side, side), False
    if is_target:
        return target, True
    raise InputError(
        f"the file has {count} position tokens after {prefix} prefix tokens, neither a square nor the "
        f"model's {_grid_text(target)}{_layout(count + prefix, prefix)}: give the image size that it was trained at, "
        "--weights_img_size H W"
    )


def _layout(total: int, prefix: int) -> str:
    """The likely layout of a position embedding, if it is of another one than the model's."""
    layouts = {0: "none for the class token, as DeiT III", 1: "one for the class token", 2: "two, as a distilled file"}
    for other, meaning in layouts.items():
        if other != prefix and total > other and math.isqrt(total - other) ** 2 == total - other:
            return f" (perhaps {total} tokens with {meaning})"
    return ""


def _sizes(square: Grid, target: Grid, patch: tuple[int, int] | None) -> str:
    if patch is None:
        return "H W"
    return " or ".join(f"{rows * patch[0]} {columns * patch[1]}" for rows, columns in (square, target))


def _grid_text(grid: Grid) -> str:
    return f"{grid[0]}×{grid[1]}"
