"""Converts pixels of any type to 8-bit RGB: scaled if the file or the type gives the range, refused if it is
unknown."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""
WHITE_IS_ZERO = 0
SIGNED = 2
"""The sample format of signed integers."""
WHOLE = 255
WANTED = "expected 8 or 16 bits a channel, or floats from 0 to 1"
REMEDY = "convert it to 8 bits"


class Stored(NamedTuple):
    """How the values of an image are stored.

    Args:
        bits: per value.
        signed: whether they may be negative.
        inverted: whether 0 is white and PIL does not invert it.
    """

    bits: int
    signed: bool = False
    inverted: bool = False


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decodes all pixels, applies EXIF orientation, and converts to RGB with 8 bits per channel.

    - 16 bits (and 12, where the file says so) keep the upper 8;
    - signed integers are scaled from their positive range, 0 to 127 or 32,767, if none is negative;
    - 32-bit integers are kept if they are from 0 to 255: the range of larger ones is unknown;
    - floats from 0 to 1 are multiplied by 255; integers up to 255 are kept;
    - transparent pixels become white.

    Raises:
        ValueError: values of another range, which is named.
        Exception: any exception of PIL on damaged files.
    """
    stored = _stored(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("F", "I")) or stored.signed:
        values = np.asarray(image)
        scaled = _from_floats(values) if image.mode.startswith("F") else _from_integers(values, stored)
        image = Image.fromarray(WHOLE - scaled if stored.inverted else scaled)
    if image.mode == "La":  # PIL has no way from it to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _stored(image: Image.Image) -> Stored:
    """By the tags of the file; of an image in memory, by its mode."""
    mode, tags = image.mode, getattr(image, "tag_v2", None)
    if tags is not None:  # TIFF
        bits, kinds = tags.get(BITS_PER_SAMPLE, (1,)), tags.get(SAMPLE_FORMAT, (1,))
        # PIL inverts 8-bit images where 0 is white, but not those with more bits.
        inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and mode in ("I;16", "F")
        return Stored(int(np.max(bits)), SIGNED in np.atleast_1d(kinds), inverted)
    # PIL scales a PPM of more than 8 bits to 16, whose mode is I; so was, in older versions, a PNG's.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        return Stored(16)
    return Stored(32, signed=True) if mode == "I" else Stored(8)


def _from_floats(values: np.ndarray) -> np.ndarray:
    """(H, W) floats → uint8."""
    low, high = _range(values)
    if np.isnan(values).any():
        raise ValueError(f"{WANTED}, got floats: NaN, and {_shown(low)} to {_shown(high)}; {REMEDY}")
    if low >= 0 and high <= 1:
        return np.floor(values * WHOLE + 0.5).astype(np.uint8)
    if low >= 0 and high <= WHOLE and (values == np.floor(values)).all():
        return values.astype(np.uint8)
    raise ValueError(f"{WANTED}, got floats: {_shown(low)} to {_shown(high)}; {REMEDY}")


def _from_integers(values: np.ndarray, stored: Stored) -> np.ndarray:
    """(H, W) or (H, W, channels) integers → uint8."""
    if stored.bits == 8:
        values = values.view(np.int8)  # PIL takes signed ones for unsigned ones
    elif stored.bits == 32 and not stored.signed:
        values = values.view(np.uint32)  # and the other way round
    low, high = _range(values)
    if low < 0 or (stored.bits > 16 and high > WHOLE):
        kind = f"{stored.bits}-bit {'signed ' if stored.signed else ''}integers"
        raise ValueError(f"{WANTED}, got {kind}: {_shown(low)} to {_shown(high)}; {REMEDY}")
    values = values.astype(np.int32)
    if stored.bits <= 16:
        values = values * WHOLE // (2 ** (stored.bits - 1) - 1) if stored.signed else values >> (stored.bits - 8)
    return values.astype(np.uint8)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value; infinite ones count, NaN does not, unless there is nothing else."""
    if not values.size:
        return 0, 0
    if values.dtype.kind == "f" and np.isnan(values).any():
        known = values[~np.isnan(values)]
        return (float(known.min()), float(known.max())) if known.size else (np.nan, np.nan)
    return values.min().item(), values.max().item()


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
