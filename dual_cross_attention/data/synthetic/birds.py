"""The synthetic toy dataset for classification: birds of ten species, which differ only in the colors of the cap and of
a bar on the wing.

Everything else varies independently of the species: position, direction, size, tilt, plumage, branch and background.
Distractor petals have the colors of caps and bars and the size of a bar, so global color statistics are not predictive:
a model needs local features.
"""

import math
from random import Random

from PIL import Image, ImageDraw

from dual_cross_attention.data.fgvc.fine_grained import FineGrainedData
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.synthetic.drawing import Color, Frame, Point, pick, shaded, varied

TOY_SIZE = 64
"""Height and width of a toy image, in pixels."""

COLORS: dict[str, Color] = {
    "orange": (250, 130, 20),
    "black": (28, 26, 34),
    "red": (220, 30, 45),
    "yellow": (255, 220, 40),
    "blue": (40, 90, 235),
    "white": (252, 252, 252),
}
SPECIES = [(cap, bar) for cap in ("orange", "black") for bar in ("red", "yellow", "blue", "white", "black")]
"""The colors of the cap and of the bar, by class index."""

_PLUMAGES = [(176, 128, 92), (128, 146, 168), (142, 152, 98), (190, 140, 146), (112, 158, 150), (170, 150, 120)]
_BACKGROUNDS = [  # colors at the top and at the bottom
    ((186, 220, 242), (226, 238, 214)),
    ((250, 226, 200), (214, 206, 222)),
    ((206, 230, 208), (160, 200, 158)),
    ((222, 214, 240), (244, 224, 226)),
]
_FINE = 4  # supersampling factor, for smooth edges


def draw_toy(train_per_species: int = 250, test_per_species: int = 50) -> FineGrainedData:
    """Generates the toy dataset: ten species, deterministic, as PIL images in RGB of 64×64 pixels.

    Args:
        train_per_species, test_per_species: images of each species in the two splits.
    """
    return FineGrainedData(
        "toy",
        [f"{cap}_capped_{bar}_barred" for cap, bar in SPECIES],
        _drawn("train", train_per_species),
        _drawn("test", test_per_species),
    )


def _drawn(split: str, per_species: int) -> ImageList:
    labels = list(range(len(SPECIES))) * per_species
    return ImageList([draw_bird(species, f"{split} {i}") for i, species in enumerate(labels)], labels)


def draw_bird(species: int, scene: str) -> Image.Image:
    """Draws one bird, RGB, 64×64 pixels.

    Args:
        species: index into `SPECIES`.
        scene: seeds everything but the species; the same text gives the same scene.
    """
    random = Random(scene)  # only .random() and .uniform(), whose sequences are the same in every Python version
    side = TOY_SIZE * _FINE
    image = _background(random, side)
    draw = ImageDraw.Draw(image)
    seat = (side * random.uniform(0.41, 0.59), side * random.uniform(0.42, 0.58))
    unit = random.uniform(13.5, 17) * _FINE
    bird = Frame(draw, seat, unit, tilt=random.uniform(-0.3, 0.3), mirrored=random.random() < 0.5)
    _branch(random, draw, (seat[0], seat[1] + 0.95 * unit), side)
    _petals(random, draw, side)
    _bird(random, bird, *SPECIES[species])
    return image.reduce(_FINE)


def _bird(random: Random, bird: Frame, cap: str, bar: str):
    back = varied(random, pick(random, _PLUMAGES), by=18)
    wing, breast, legs, bill = shaded(back, 0.76), shaded(back, 1.28), (92, 70, 60), (96, 84, 78)
    for foot in (0.0, 0.22):
        bird.polygon([(foot, 0.4), (foot + 0.07, 0.4), (foot + 0.09, 1.0), (foot + 0.02, 1.0)], legs)
    bird.polygon([(-0.55, -0.12), (-1.6, 0.22), (-1.52, 0.5), (-0.5, 0.35)], wing)  # tail
    bird.ellipse((0, 0), (0.92, 0.58), back, tilt=-0.35)
    bird.ellipse((0.24, 0.16), (0.58, 0.38), breast, tilt=-0.5)
    bird.polygon([(0.98, -0.72), (1.5, -0.46), (0.98, -0.34)], bill)
    bird.ellipse((0.7, -0.56), (0.42, 0.4), back)
    bird.ellipse((0.7, -0.61), (0.44, 0.42), varied(random, COLORS[cap], by=25), tilt=0.08, upper_half=True)
    bird.ellipse((0.85, -0.52), (0.1, 0.1), (20, 18, 24))  # eye
    bird.ellipse((0.88, -0.56), (0.035, 0.035), (255, 255, 255))
    bird.ellipse((-0.26, 0.02), (0.66, 0.34), wing, tilt=-0.1)
    bird.ellipse((-0.16, 0.02), (0.35, 0.19), varied(random, COLORS[bar], by=25), tilt=-0.1)


def _background(random: Random, side: int) -> Image.Image:
    top, bottom = (varied(random, color, by=8) for color in pick(random, _BACKGROUNDS))
    column = Image.new("RGB", (1, 2), top)
    column.putpixel((0, 1), bottom)
    image = column.resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for _ in range(6):  # distant leaves
        place = (side * random.random(), side * random.random())
        color = varied(random, shaded(bottom, random.uniform(0.9, 1.06)), by=8)
        Frame(draw, place, side * random.uniform(0.05, 0.14), tilt=0).ellipse((0, 0), (1, 1), color)
    return image


def _branch(random: Random, draw: ImageDraw.ImageDraw, under: Point, side: int):
    slope, half = random.uniform(-0.2, 0.2), random.uniform(0.012, 0.024) * side
    left, right = under[1] - slope * under[0], under[1] + slope * (side - under[0])
    corners = [(0, left - half), (side, right - half), (side, right + half), (0, left + half)]
    draw.polygon([(x, round(y)) for x, y in corners], fill=varied(random, (122, 92, 70), by=14))


def _petals(random: Random, draw: ImageDraw.ImageDraw, side: int):
    for color in COLORS.values():
        for _ in range(int(4 * random.random())):  # random counts, so that color shares are not predictive
            place = (side * random.random(), side * random.random())
            petal = Frame(draw, place, side * random.uniform(0.05, 0.1), tilt=random.uniform(0, math.pi))
            petal.ellipse((0, 0), (1, 0.5), varied(random, color, by=25))
