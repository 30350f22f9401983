"""Mean and standard deviation that the pixels of a backbone's images are normalized by, and where they are from."""

from typing import Any, NamedTuple

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import short_repr

HALF = (0.5, 0.5, 0.5)
IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class PixelStats(NamedTuple):
    """Of pixels from 0 to 1.

    Args:
        mean, std: of the red, green and blue channel.
        source: where the values come from, for messages.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std} (from {self.source})"


def stats_of_cfg(pretrained_cfg: dict[str, Any], source: str) -> PixelStats:
    """Of a timm model's `pretrained_cfg`; what it does not name is ImageNet's, as in timm."""
    stats = resolve_data_config(pretrained_cfg=pretrained_cfg)
    return PixelStats(tuple(stats["mean"]), tuple(stats["std"]), source)


def default_stats(pixel_stats: str | None, pretrained_cfg: dict[str, Any], backbone: str) -> PixelStats:
    """What images are normalized by where neither settings nor a weights file name mean and std.

    Args:
        pixel_stats: re-ID's setting of that name; None: another task.
        pretrained_cfg: of the backbone.
        backbone: its name in timm.
    """
    if pixel_stats == "half":
        return PixelStats(HALF, HALF, "pixel_stats half; --pixel_stats backbone takes the backbone's")
    return stats_of_cfg(pretrained_cfg, f"timm's {backbone}")


def read_stats(mean: Any, std: Any, source: str) -> PixelStats:
    """Values out of an untrusted file.

    Raises:
        InputError: not three numbers each, from 0 to 1, std above 0.
    """
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_share, values)):
            raise InputError(f"{source}: {name}: expected three numbers from 0 to 1, got {short_repr(values)}")
    if min(std) <= 0:
        raise InputError(f"{source}: std: expected numbers above 0, got {short_repr(std)}")
    return PixelStats(tuple(map(float, mean)), tuple(map(float, std)), source)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
