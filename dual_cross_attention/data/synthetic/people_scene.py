"""Renders people under the six cameras of the toy dataset.

A person has hair, skin, clothes, shoes and an optional bag. Each camera has its own light, view, crop and background,
which change an image more than the identity does.
"""

import math
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

from dual_cross_attention.data.synthetic.drawing import Color, Frame, Point, shaded, varied

TOY_HEIGHT, TOY_WIDTH = 64, 32
"""Size of a toy image, in pixels."""

COLORS: dict[str, Color] = {
    "red": (206, 40, 48),
    "orange": (246, 140, 40),
    "yellow": (246, 214, 62),
    "green": (52, 142, 72),
    "blue": (44, 90, 196),
    "violet": (140, 76, 172),
    "white": (244, 244, 240),
    "grey": (134, 138, 146),
    "black": (38, 38, 46),
    "brown": (112, 70, 40),
    "blond": (226, 186, 104),
    "ginger": (190, 88, 34),
    "pale": (248, 214, 188),
    "tan": (206, 150, 108),
    "dark": (116, 74, 52),
}


class Person(NamedTuple):
    """An identity; colors are names in `COLORS`."""

    hair: str
    long_hair: bool
    skin: str
    top: str
    sleeves: str
    stripe: str | None
    bottom: str
    legwear: str
    shoes: str
    bag: tuple[str, str] | None
    """Shoulder (the person's left or right) and color."""


class Camera(NamedTuple):
    """Parameters of a camera. Lengths are in pixels of the final image."""

    view: str
    """Visible side of a person: front, back, left or right."""
    gains: tuple[float, float, float]
    gamma: float
    haze: float
    height: float
    """Of a person; taller than `TOY_HEIGHT`: head or feet are cut off."""
    center: Point
    wall: Color
    floor: Color
    horizon: float
    bars: tuple[int, int] = (0, 0)
    """Distance and width of upright bars on the wall; 0: none."""
    rows: tuple[int, int] = (0, 0)
    stripes: tuple[int, int] = (0, 0)
    """Of the floor."""
    trees: int = 0


CAMERAS = [
    Camera("front", (1.0, 1.0, 1.0), 1.0, 0.0, 57, (16, 32), (196, 190, 178), (160, 158, 156), 44, rows=(5, 1)),
    Camera("back", (1.1, 0.92, 0.72), 1.1, 0.0, 52, (18, 34), (166, 130, 110), (132, 118, 108), 40, (6, 1), (4, 1)),
    Camera("right", (0.8, 0.94, 1.14), 0.95, 0.06, 60, (15, 33), (178, 200, 214), (122, 152, 104), 36, trees=4),
    Camera("left", (0.66, 0.68, 0.76), 1.05, 0.0, 55, (14, 30), (140, 144, 150), (112, 112, 118), 48, bars=(9, 3)),
    Camera("front", (0.9, 1.0, 0.82), 0.85, 0.14, 66, (17, 36), (196, 200, 190), (176, 178, 168), 50, (12, 7)),
    Camera("back", (1.16, 1.1, 1.1), 0.9, 0.03, 48, (17, 30), (128, 140, 150), (84, 86, 92), 26, stripes=(9, 5)),
]
"""Camera c is `CAMERAS[c - 1]`."""
_FINE = 4  # supersampling factor, for smooth edges


def draw_person(person: Person, camera: int, scene: str) -> Image.Image:
    """Draws one person, RGB, 64 pixels high and 32 wide.

    Args:
        person: the identity.
        camera: 1 to 6.
        scene: seeds everything else (pose, crop, light, objects); the same text gives the same scene.
    """
    random, seen = Random(scene), CAMERAS[camera - 1]
    image = _background(random, seen)
    draw = ImageDraw.Draw(image)
    center = tuple(_FINE * (at + random.uniform(-2.5, 2.5)) for at in seen.center)
    unit = _FINE * seen.height * random.uniform(0.95, 1.05)
    frame = Frame(draw, center, unit, lean=random.uniform(-0.08, 0.08), mirrored=seen.view == "left")
    arms, legs = (random.uniform(0.08, 0.5), random.uniform(0.08, 0.5)), random.uniform(0.04, 0.22)
    Frame(draw, center, unit).ellipse((0, 0.47), (0.2, 0.035), shaded(seen.floor, 0.72))  # shadow
    _person(frame, person, seen.view, arms, legs)
    _obstacle(random, draw)
    return image.reduce(_FINE).point(_light(random, seen))


def _light(random: Random, camera: Camera) -> list[int]:
    """Lookup table of color levels, 3 × 256."""
    brightness, gamma = random.uniform(0.92, 1.08), camera.gamma * random.uniform(0.93, 1.07)
    gains = [gain * brightness * random.uniform(0.97, 1.03) for gain in camera.gains]
    levels = [camera.haze + (1 - camera.haze) * (level / 255) ** gamma for level in range(256)]
    return [min(255, round(255 * gain * level)) for gain in gains for level in levels]


def _background(random: Random, camera: Camera) -> Image.Image:
    width, height = TOY_WIDTH * _FINE, TOY_HEIGHT * _FINE
    wall, floor = varied(random, camera.wall, by=10), varied(random, camera.floor, by=10)
    image = Image.new("RGB", (width, height), wall)
    draw = ImageDraw.Draw(image)
    horizon = round(_FINE * (camera.horizon + random.uniform(-3, 3)))
    for left, right in _repeated(random, camera.bars, width):
        draw.rectangle((left, 0, right, horizon), fill=shaded(wall, 0.84))
    for top, bottom in _repeated(random, camera.rows, horizon):
        draw.rectangle((0, top, width, bottom), fill=shaded(wall, 0.9))
    for _ in range(camera.trees):
        place = (width * random.random(), horizon - height * random.uniform(0, 0.25))
        leaves = varied(random, (70, 124, 72), by=16)
        Frame(draw, place, height * random.uniform(0.08, 0.16)).ellipse((0, 0), (1, 1.2), leaves)
    draw.rectangle((0, horizon, width, height), fill=floor)
    for top, bottom in _repeated(random, camera.stripes, height - horizon):
        draw.rectangle((0, horizon + top, width, horizon + bottom), fill=shaded(floor, 2))
    return image


def _repeated(random: Random, pattern: tuple[int, int], length: int) -> list[tuple[int, int]]:
    """Begin and end of each bar of a pattern with random phase, up to `length`."""
    distance, wide = (_FINE * pixels for pixels in pattern)
    first = int(distance * random.random()) - distance
    return [(at, min(at + wide, length)) for at in range(first, length, distance)] if distance else []


def _obstacle(random: Random, draw: ImageDraw.ImageDraw):
    """Draws a post or a bush in front of 30 % of the people."""
    chance, x, shade = random.random(), TOY_WIDTH * _FINE * random.uniform(0.1, 0.9), random.uniform(0.8, 1.2)
    if chance < 0.15:
        draw.rectangle((round(x), 0, round(x) + 4 * _FINE, TOY_HEIGHT * _FINE), fill=shaded((120, 118, 112), shade))
    elif chance < 0.3:
        bush = Frame(draw, (x, TOY_HEIGHT * _FINE), TOY_WIDTH * _FINE / 2)
        for at, radius in ((-0.5, 0.5), (0.45, 0.55), (0, 0.7)):
            bush.ellipse((at, 0), (radius, radius), shaded((66, 112, 60), shade - at / 5))


def _person(frame: Frame, person: Person, view: str, arms: Point, legs: float):
    """In a frame whose unit is the person's height: top of the head at -0.5, soles at 0.5; angles to the upright."""
    aside = view in ("left", "right")
    if aside:  # arms and legs swing around the center; the far ones are drawn first, shaded
        _arm(frame, person, (0.0, -0.24), -arms[0], 0.8)
        _leg(frame, person, 0.01, -1.4 * legs, 0.8, toes=0.03)
        _leg(frame, person, 0.0, 1.4 * legs, 1.0, toes=0.03)
    else:
        for side in (-1, 1):
            _arm(frame, person, (side * 0.125, -0.23), side * arms[side > 0], 0.9)
            _leg(frame, person, side * 0.062, side * 0.5 * legs, 1.0, toes=side * 0.01)
    if person.long_hair and view == "front":
        frame.ellipse((0, -0.33), (0.115, 0.15), shaded(COLORS[person.hair], 0.8))
    _torso(frame, person, 0.7 if aside else 1.0)
    _bag(frame, person, view)
    if aside:
        _arm(frame, person, (0.0, -0.22), arms[1], 0.9)
    _head(frame, person, view)


def _slab(frame: Frame, color: Color, upper: Point, lower: Point, halves: Point):
    """A trapezoid with horizontal edges: centers and half widths of its upper and lower edge."""
    (left, top), (right, bottom), (wide, wide_below) = upper, lower, halves
    above, below = (
        [(left - wide, top), (left + wide, top)],
        [(right + wide_below, bottom), (right - wide_below, bottom)],
    )
    frame.polygon(above + below, color)


def _limb(frame: Frame, color: Color, start: Point, angle: float, length: float, half: float) -> Point:
    """Draws a limb of half width `half`; returns its end."""
    end = start[0] + length * math.sin(angle), start[1] + length * math.cos(angle)
    _slab(frame, color, start, end, (half, half))
    return end


def _arm(frame: Frame, person: Person, shoulder: Point, angle: float, shade: float):
    skin = shaded(COLORS[person.skin], shade)
    hand = _limb(frame, skin, shoulder, angle, 0.32, 0.03)
    frame.ellipse(hand, (0.034, 0.034), skin)
    sleeve = 0.29 if person.sleeves == "long" else 0.13
    _limb(frame, shaded(COLORS[person.top], shade), shoulder, angle, sleeve, 0.042)


def _leg(frame: Frame, person: Person, hip: float, angle: float, shade: float, toes: float):
    foot = _limb(frame, shaded(COLORS[person.skin], shade), (hip, 0.05), angle, 0.41, 0.036)
    covered = {"trousers": 0.4, "shorts": 0.19, "skirt": 0.0}[person.legwear]
    _limb(frame, shaded(COLORS[person.bottom], shade), (hip, 0.05), angle, covered, 0.052)
    frame.ellipse((foot[0] + toes, foot[1] + 0.01), (0.062, 0.034), shaded(COLORS[person.shoes], shade))


def _torso(frame: Frame, person: Person, wide: float):
    hem, flare = (0.26, 0.17) if person.legwear == "skirt" else (0.1, 0.11)
    _slab(frame, COLORS[person.bottom], (0, 0.02), (0, hem), (0.105 * wide, flare * wide))
    _slab(frame, COLORS[person.top], (0, -0.285), (0, -0.25), (0.08 * wide, 0.15 * wide))
    _slab(frame, COLORS[person.top], (0, -0.25), (0, 0.06), (0.15 * wide, 0.12 * wide))
    if person.stripe:
        _slab(frame, COLORS[person.stripe], (0, -0.17), (0, -0.07), (0.142 * wide, 0.132 * wide))


def _bag(frame: Frame, person: Person, view: str):
    """Draws a bag with its strap over the other shoulder; the body hides a bag on its far side."""
    if person.bag is None:
        return
    side, color = person.bag[0], COLORS[person.bag[1]]
    if view in ("left", "right"):
        shoulder, hip = (-0.05, 0.02) if side == view else (0.05, -0.08)
    else:
        hip = 0.14 if (side == "left") == (view == "front") else -0.14
        shoulder = -0.6 * hip
    _slab(frame, shaded(color, 0.85), (shoulder, -0.28), (hip, 0.05), (0.015, 0.015))
    if view in ("front", "back", side):
        _slab(frame, color, (hip, 0.0), (hip, 0.16), (0.085, 0.095))
        _slab(frame, shaded(color, 0.7), (hip, 0.0), (hip, 0.05), (0.085, 0.09))


def _head(frame: Frame, person: Person, view: str):
    hair, skin = COLORS[person.hair], COLORS[person.skin]
    _slab(frame, shaded(skin, 0.85), (0, -0.32), (0, -0.26), (0.035, 0.035))
    frame.ellipse((0, -0.39), (0.082, 0.1), skin)
    if view == "back":
        frame.ellipse((0, -0.405), (0.095, 0.1), hair)
        if person.long_hair:
            _slab(frame, hair, (0, -0.41), (0, -0.2), (0.095, 0.11))
    elif view == "front":
        frame.ellipse((0, -0.405), (0.098, 0.1), hair, upper_half=True)
    else:
        frame.ellipse((-0.012, -0.4), (0.098, 0.105), hair, tilt=-0.5, upper_half=True)
        if person.long_hair:
            frame.ellipse((-0.075, -0.32), (0.055, 0.13), hair, tilt=0.15)
    for eye in {"front": (-0.034, 0.034), "back": ()}.get(view, (0.05,)):
        frame.ellipse((eye, -0.375), (0.014, 0.018), (30, 24, 28))
