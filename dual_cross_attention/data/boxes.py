"""Bounding boxes as text, in CSV files and in CUB-200-2011."""

import math
import re
from typing import Literal

from dual_cross_attention.data.crops import Box
from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr

BoxMode = Literal["crop", "ignore"]
MISSING = {"", "nan", "none", "null"}
"""Fields, in any case, that give no box."""
LARGEST = 2**31
"""Of a coordinate, in pixels."""


def parse_box(field: str, where: str) -> Box | None:
    """The box of a field, as WildlifeDatasets writes them: "[x, y, width, height]" in pixels; None if it is empty.

    Brackets or parentheses may be omitted; numbers are separated by commas, semicolons or spaces.

    Args:
        field: without spaces around it.
        where: the file and the line, for the error.

    Raises:
        InputError: it is none.
    """
    if field.casefold() in MISSING:
        return None
    inner = field[1:-1] if field[0] + field[-1] in ("[]", "()") else field
    try:
        left, top, width, height = map(float, re.split(r"\s*[,;]\s*|\s+", inner.strip()))
        is_valid = all(map(math.isfinite, (left, top, width, height))) and width > 0 and height > 0
        if is_valid and max(map(abs, (left, top, width, height))) < LARGEST:
            return left, top, width, height
    except ValueError:
        pass
    raise InputError(
        f"{where}: the field bbox: expected x, y, width and height in pixels, as [10, 20, 64, 128], got "
        f"{short_repr(field)}"
    )
