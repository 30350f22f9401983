"""The synthetic toy dataset for re-identification: people under six cameras, many of whom share most of their clothes.

Members of a family differ from its first member in two parts, so global color identifies the family at best: a model
needs local features.
"""

from operator import ne
from random import Random

from dual_cross_attention.data.reid.identities import IdentityList, ReIDData
from dual_cross_attention.data.synthetic.drawing import pick
from dual_cross_attention.data.synthetic.people_scene import CAMERAS, Person, draw_person

PARTS = {
    "hair": ("black", "brown", "blond", "ginger"),
    "long_hair": (False, True),
    "skin": ("pale", "tan", "dark"),
    "top": ("red", "orange", "yellow", "green", "blue", "violet", "white", "grey", "black"),
    "sleeves": ("short", "long"),
    "stripe": (None, "white", "black", "red", "yellow", "blue"),
    "bottom": ("blue", "black", "grey", "white", "green", "brown", "red"),
    "legwear": ("trousers", "shorts", "skirt"),
    "shoes": ("white", "black", "red"),
    "bag": (None, None, *((side, color) for side in ("left", "right") for color in ("red", "white", "black"))),
}
"""Options of each part, for training and test identities."""


def _people(families: int, members: int) -> list[Person]:
    """The first of each family, then the second of each, ...; any two differ in two parts or more."""
    random = Random("people 15")  # with this seed, all options of all parts are in the training set
    people: list[Person] = []
    while len(people) < families * members:
        if len(people) < families:
            person = Person(**{part: pick(random, options) for part, options in PARTS.items()})
            person = person._replace(top=PARTS["top"][len(people) % len(PARTS["top"])])  # each color, on both sides
        else:
            changed = pick(random, Person._fields), pick(random, Person._fields)
            others = {part: pick(random, PARTS[part]) for part in changed}
            person = people[len(people) % families]._replace(**others)
        bag = person.bag and person.bag[1]
        blurred = person.top in (person.stripe, person.bottom, bag) or person.bottom == bag
        if not blurred and all(sum(map(ne, person, other)) >= 2 for other in people):
            people.append(person)
    return people


_CROWD = _people(families=26, members=4)
TRAIN_PEOPLE = [person for i, person in enumerate(_CROWD) if i % 26 >= 6]
"""Training identities by label, 80."""
TEST_PEOPLE = [person for i, person in enumerate(_CROWD) if i % 26 < 6]
"""Test identities, 20 and four more: distractors, with the families of the last identities."""


def draw_toy_people(train: bool = True, train_per_camera: int = 5, gallery_per_camera: int = 3) -> ReIDData:
    """Generates the toy dataset: 80 training and 20 test identities under cameras 1 to 6, deterministic.

    Images are PIL images, RGB, 64 high and 32 wide. There is one query for each test identity and camera; test
    identities count from 1. The gallery has four more people as distractors, all with identity 0.

    Args:
        train: draw the training images; False: `train` is None and `identities` is empty.
        train_per_camera, gallery_per_camera: images of each person under each camera.
    """
    tested, strangers = list(enumerate(TEST_PEOPLE[:20], start=1)), [(0, person) for person in TEST_PEOPLE[20:]]
    return ReIDData(
        "toy",
        [f"person_{label:02d}" for label in range(len(TRAIN_PEOPLE))] if train else [],
        _drawn("train", list(enumerate(TRAIN_PEOPLE)), train_per_camera) if train else None,
        _drawn("query", tested, 1),
        _drawn("gallery", tested + strangers, gallery_per_camera),
        distractors=0,
    )


def _drawn(split: str, people: list[tuple[int, Person]], per_camera: int) -> IdentityList:
    """Scene names do not contain the count, so smaller datasets have the same images."""
    images, identities, cameras = [], [], []
    for place, (identity, person) in enumerate(people):
        for camera in range(1, len(CAMERAS) + 1):
            images += [draw_person(person, camera, f"{split} {place} {camera} {i}") for i in range(per_camera)]
            identities += [identity] * per_camera
            cameras += [camera] * per_camera
    return IdentityList(images, identities, cameras)
