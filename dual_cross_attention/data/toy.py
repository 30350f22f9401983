"""The built-in toy set: drawn birds whose ten species differ only in the colour of the cap and of a bar on the wing.

Everything else varies from picture to picture and says nothing about the species: where the bird sits, its size, tilt and
plumage, which way it looks, branch, background. Petals in the very colours of caps and bars are strewn over each
picture, so that the colours of the whole picture do not tell either: a model has to look at the right spots.
"""

import math
from collections.abc import Sequence
from random import Random

from PIL import Image, ImageDraw

from dual_cross_attention.data.fine_grained import FineGrainedData
from dual_cross_attention.data.pictures import PictureList

TOY_SIZE = 64
"""Height and width of a toy picture, in pixels."""

Colour = tuple[int, int, int]
Point = tuple[float, float]

CAPS: dict[str, Colour] = {"orange": (250, 130, 20), "black": (28, 26, 34)}
BARS: dict[str, Colour] = {
    "red": (220, 30, 45),
    "yellow": (255, 220, 40),
    "blue": (40, 90, 235),
    "white": (252, 252, 252),
    "black": (24, 22, 30),
}
SPECIES = [(cap, bar) for cap in CAPS for bar in BARS]

_PLUMAGES: list[Colour] = [(176, 128, 92), (128, 146, 168), (142, 152, 98), (190, 140, 146), (112, 158, 150), (170, 150, 120)]
_SKIES: list[tuple[Colour, Colour]] = [  # top and bottom of the background
    ((186, 220, 242), (226, 238, 214)),
    ((250, 226, 200), (214, 206, 222)),
    ((206, 230, 208), (160, 200, 158)),
    ((222, 214, 240), (244, 224, 226)),
]
_UPPER_HALF = [math.pi * (1.06 + 0.88 * i / 12) for i in range(13)]  # angles, in radians
_FINE = 4  # pictures are drawn this many times larger, then averaged: smooth edges


def draw_toy(train_per_species: int = 250, test_per_species: int = 50) -> FineGrainedData:
    """The toy set: ten species, the same pictures every time, as PIL images of 64×64 in memory.

    Args:
        train_per_species, test_per_species: pictures of each species in the two splits.
    """
    return FineGrainedData(
        "toy",
        [f"{cap}_capped_{bar}_barred" for cap, bar in SPECIES],
        _drawn("train", train_per_species),
        _drawn("test", test_per_species),
    )


def _drawn(split: str, per_species: int) -> PictureList:
    labels = [species for _ in range(per_species) for species in range(len(SPECIES))]
    return PictureList([draw_bird(species, f"{split} {i}") for i, species in enumerate(labels)], labels)


def draw_bird(species: int, scene: str) -> Image.Image:
    """One bird of a species, RGB, 64×64 pixels.

    Args:
        species: index into `SPECIES`.
        scene: seeds everything but the species; the same text gives the same scene.
    """
    random = Random(scene)  # only .random() and .uniform() below: their sequence is the same in every Python
    side = TOY_SIZE * _FINE
    picture = _sky(random, side)
    draw = ImageDraw.Draw(picture)
    size = random.uniform(13.5, 17) * _FINE
    seat = (side * random.uniform(0.44, 0.56), side * random.uniform(0.45, 0.57))
    bird = _Frame(draw, seat, size, tilt=random.uniform(-0.25, 0.25), mirrored=random.random() < 0.5)
    _branch(random, draw, (seat[0], seat[1] + 0.95 * size), side)
    _petals(random, draw, side)
    _bird(random, bird, *SPECIES[species])
    return picture.reduce(_FINE)


class _Frame:
    """Draws in the bird's own coordinates: right is where it looks, down is where its feet are, 1 is half its body."""

    def __init__(self, draw: ImageDraw.ImageDraw, origin: Point, unit: float, tilt: float, mirrored: bool):
        self.draw, self.origin, self.unit = draw, origin, unit
        self.cos, self.sin = math.cos(tilt), math.sin(tilt)
        self.side = -1 if mirrored else 1

    def polygon(self, points: Sequence[Point], colour: Colour):
        self.draw.polygon([self._place(point) for point in points], fill=colour)

    def ellipse(self, centre: Point, radii: Point, colour: Colour, turn: float = 0.0):
        cos, sin = math.cos(turn), math.sin(turn)
        outline = [(radii[0] * math.cos(a), radii[1] * math.sin(a)) for a in (math.tau * i / 24 for i in range(24))]
        self.polygon([(centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y) for x, y in outline], colour)

    def _place(self, point: Point) -> tuple[int, int]:
        x, y = self.cos * point[0] - self.sin * point[1], self.sin * point[0] + self.cos * point[1]
        return round(self.origin[0] + self.side * self.unit * x), round(self.origin[1] + self.unit * y)


def _bird(random: Random, bird: _Frame, cap: str, bar: str):
    back = _varied(random, _pick(random, _PLUMAGES), 18)
    wing, breast, legs = _shade(back, 0.74), _shade(back, 1.28), (92, 70, 60)
    for foot in (0.0, 0.22):
        bird.polygon([(foot, 0.4), (foot + 0.07, 0.4), (foot + 0.09, 1.0), (foot + 0.02, 1.0)], legs)
    bird.polygon([(-0.55, -0.12), (-1.6, 0.22), (-1.52, 0.5), (-0.5, 0.35)], wing)  # tail
    bird.ellipse((0, 0), (0.92, 0.58), back, turn=-0.35)
    bird.ellipse((0.24, 0.16), (0.58, 0.38), breast, turn=-0.5)
    bird.polygon([(0.98, -0.72), (1.5, -0.46), (0.98, -0.34)], (96, 84, 78))
    bird.ellipse((0.7, -0.56), (0.42, 0.4), back)
    bird.polygon([(0.7 + 0.43 * math.cos(a), -0.6 + 0.42 * math.sin(a)) for a in _UPPER_HALF], CAPS[cap])
    bird.ellipse((0.84, -0.56), (0.1, 0.1), (20, 18, 24))
    bird.ellipse((0.87, -0.6), (0.035, 0.035), (255, 255, 255))
    bird.ellipse((-0.26, 0.02), (0.66, 0.34), wing, turn=-0.1)
    bird.ellipse((-0.16, 0.02), (0.32, 0.16), BARS[bar], turn=-0.1)


def _sky(random: Random, side: int) -> Image.Image:
    top, bottom = _pick(random, _SKIES)
    column = Image.new("RGB", (1, 2))
    column.putpixel((0, 0), _varied(random, top, 8))
    column.putpixel((0, 1), _varied(random, bottom, 8))
    picture = column.resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for _ in range(6):  # leaves far away
        x, y, radius = side * random.random(), side * random.random(), side * random.uniform(0.05, 0.14)
        colour = _varied(random, _shade(bottom, random.uniform(0.9, 1.06)), 8)
        draw.ellipse((round(x - radius), round(y - radius), round(x + radius), round(y + radius)), fill=colour)
    return picture


def _branch(random: Random, draw: ImageDraw.ImageDraw, under: Point, side: int):
    slope, half = random.uniform(-0.2, 0.2), random.uniform(0.012, 0.024) * side
    left, right = under[1] - slope * under[0], under[1] + slope * (side - under[0])
    bark = _varied(random, (122, 92, 70), 14)
    corners = [(0, left - half), (side, right - half), (side, right + half), (0, left + half)]
    draw.polygon([(round(x), round(y)) for x, y in corners], fill=bark)


def _petals(random: Random, draw: ImageDraw.ImageDraw, side: int):
    colours = [*BARS.values(), *CAPS.values()]
    for _ in range(4 + int(4 * random.random())):
        centre = (side * random.random(), side * random.random())
        petal = _Frame(draw, centre, side * random.uniform(0.05, 0.07), tilt=random.uniform(0, math.pi), mirrored=False)
        petal.ellipse((0, 0), (1.0, 0.5), _pick(random, colours))


def _pick(random: Random, items: Sequence):
    return items[int(len(items) * random.random())]


def _varied(random: Random, colour: Colour, by: float) -> Colour:
    return tuple(max(0, min(255, round(channel + random.uniform(-by, by)))) for channel in colour)


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, round(channel * factor)) for channel in colour)
