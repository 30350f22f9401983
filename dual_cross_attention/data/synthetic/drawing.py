"""Drawing primitives of the synthetic datasets: shapes in local coordinates, reproducible on every platform.

Random numbers come from `random()` and `uniform()` of `random.Random(text)` only, whose sequences are the same in every
Python version. Shapes are polygons with integer corners.
"""

import math
from collections.abc import Iterable, Sequence
from random import Random

from PIL import ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]


class Frame:
    """Draws in local coordinates: x in viewing direction, y towards the feet, 1 is `unit` pixels.

    Args:
        tilt: rotation angle.
        lean: shear of x by y. Unlike `tilt` it keeps horizontal edges horizontal: at the end of an edge that falls by a
            single pixel, Pillow 10.1 fills one pixel more than 11.3.
    """

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        origin: Point,
        unit: float,
        tilt: float = 0.0,
        mirrored: bool = False,
        lean: float = 0.0,
    ):
        self.draw, self.origin, self.unit = draw, origin, unit
        self.tilt, self.lean, self.side = tilt, lean, -1 if mirrored else 1

    def polygon(self, points: Iterable[Point], color: Color):
        placed = [turned(point, self.tilt) for point in points]
        left, top = self.origin
        across = self.side * self.unit
        corners = [(round(left + across * (x + self.lean * y)), round(top + self.unit * y)) for x, y in placed]
        self.draw.polygon(corners, fill=color)

    def ellipse(self, center: Point, radii: Point, color: Color, tilt: float = 0.0, upper_half: bool = False):
        """Draws an ellipse, or the half above its longer axis."""
        span = math.pi if upper_half else math.tau
        outline = [turned((radii[0] * math.cos(a), -radii[1] * math.sin(a)), tilt) for a in _steps(span)]
        self.polygon([(center[0] + x, center[1] + y) for x, y in outline], color)


def turned(point: Point, angle: float) -> Point:
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * point[0] - sin * point[1], sin * point[0] + cos * point[1]


def pick(random: Random, items: Sequence):
    return items[int(len(items) * random.random())]


def varied(random: Random, color: Color, by: float) -> Color:
    return tuple(max(0, min(255, round(channel + random.uniform(-by, by)))) for channel in color)


def shaded(color: Color, factor: float) -> Color:
    return tuple(min(255, round(channel * factor)) for channel in color)


def _steps(span: float, count: int = 24) -> list[float]:
    return [span * i / count for i in range(count + 1)]
