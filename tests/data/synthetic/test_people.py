"""The toy set of people: the same everywhere, complete, and neither read off the whole image nor past reading."""

import hashlib
from collections import Counter
from itertools import product

import numpy as np
import pytest

from dual_cross_attention.data.synthetic.people import (
    PARTS,
    TEST_PEOPLE,
    TRAIN_PEOPLE,
    Person,
    draw_person,
    draw_toy_people,
)

ANNA = Person("ginger", True, "pale", "green", "long", "white", "blue", "skirt", "red", ("left", "black"))
BEN = Person("black", False, "dark", "orange", "short", None, "grey", "shorts", "white", ("right", "red"))
CAMERAS = range(1, 7)
# SHA-256 of the pixels, first 16 digits: a change of one of them is another dataset, with other results.
PIXELS = {
    (ANNA, 1): "73ddfb1084dc04ba",
    (ANNA, 2): "b40fe513c761abe9",
    (ANNA, 3): "4c9f46a4a5f46731",
    (BEN, 4): "dd58203137f29158",
    (BEN, 5): "33d22c50dbe0cdf2",
    (BEN, 6): "7961ba071a695e2b",
}
CROWD = "22a89262da051367"


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(np.float64) / 255


@pytest.fixture(scope="module")
def toy():
    return draw_toy_people()


@pytest.mark.parametrize(("person", "camera"), PIXELS)
def test_pixels_stay_the_same(person, camera):
    assert hashlib.sha256(draw_person(person, camera, "a").tobytes()).hexdigest()[:16] == PIXELS[person, camera]


def test_people_stay_the_same():
    assert hashlib.sha256(repr((TRAIN_PEOPLE, TEST_PEOPLE)).encode()).hexdigest()[:16] == CROWD


def test_sizes_and_modes(toy):
    for images in (toy.train.images, toy.query.images, toy.gallery.images):
        assert {(image.mode, image.size) for image in images} == {("RGB", (32, 64))}
    everything = [*toy.train.images, *toy.query.images, *toy.gallery.images]
    assert len({image.tobytes() for image in everything}) == 2400 + 120 + 432


def test_everyone_is_under_every_camera(toy):
    def counted(split) -> Counter:
        return Counter(zip(split.identities, split.cameras, strict=True))

    assert (toy.name, toy.warnings) == ("toy", [])
    assert len(toy.identities) == len(set(toy.identities)) == 80
    assert counted(toy.train) == dict.fromkeys(product(range(80), CAMERAS), 5)
    assert counted(toy.query) == dict.fromkeys(product(range(1, 21), CAMERAS), 1)
    distractors = dict.fromkeys(product([0], CAMERAS), 4 * 3)
    assert counted(toy.gallery) == dict.fromkeys(product(range(1, 21), CAMERAS), 3) | distractors


def test_images_match_their_identities_and_cameras(toy):
    """Number 217 in training is the third image of identity 7 under camera 2, and so on."""
    for split, name, per_camera, place in ((toy.train, "train", 5, 217), (toy.gallery, "gallery", 3, 431)):
        identity, camera, i = place // per_camera // 6, place // per_camera % 6 + 1, place % per_camera
        person = (TRAIN_PEOPLE if name == "train" else TEST_PEOPLE)[identity]
        assert split.cameras[place] == camera
        assert split.images[place].tobytes() == draw_person(person, camera, f"{name} {identity} {camera} {i}").tobytes()
    for place, identity in enumerate(toy.query.identities):
        person, camera = TEST_PEOPLE[identity - 1], toy.query.cameras[place]
        drawn = draw_person(person, camera, f"query {identity - 1} {camera} 0")
        assert toy.query.images[place].tobytes() == drawn.tobytes()


def test_training_and_test_identities_are_disjoint():
    people = [*TRAIN_PEOPLE, *TEST_PEOPLE]
    assert (len(TRAIN_PEOPLE), len(TEST_PEOPLE), len(set(people))) == (80, 24, 104)


@pytest.mark.parametrize("people", [TRAIN_PEOPLE, TEST_PEOPLE], ids=["train", "test"])
def test_everyone_has_a_lookalike_who_differs_in_two_parts(people):
    for person in people:
        apart = [sum(a != b for a, b in zip(person, other, strict=True)) for other in people if other is not person]
        assert min(apart) == 2


def test_training_has_every_option_of_every_part():
    assert tuple(PARTS) == Person._fields
    for i, (part, options) in enumerate(PARTS.items()):
        assert {person[i] for person in TRAIN_PEOPLE} == set(options), part
        assert {person[i] for person in TEST_PEOPLE} <= set(options), part


def test_without_training_the_test_side_is_the_same(toy):
    small = draw_toy_people(train=False, gallery_per_camera=1)
    assert (small.train, small.identities) == (None, [])
    assert [p.tobytes() for p in small.query.images] == [p.tobytes() for p in toy.query.images]
    assert [p.tobytes() for p in small.gallery.images] == [p.tobytes() for p in toy.gallery.images[::3]]


@pytest.mark.parametrize("camera", CAMERAS)
def test_one_part_changes_few_pixels(camera):
    """Same scene: another part is another patch of the body, and another camera another image."""
    for scene in "abc":
        drawn = pixels([draw_person(ANNA, camera, scene)])
        for part in ("hair", "top", "stripe", "bottom", "shoes", "bag", "sleeves", "legwear", "long_hair", "skin"):
            other = ANNA._replace(**{part: getattr(BEN, part)})
            changed = (drawn != pixels([draw_person(other, camera, scene)])).any(axis=-1).mean()
            assert changed < 0.3, part
        for elsewhere in set(CAMERAS) - {camera}:
            changed = np.abs(drawn - pixels([draw_person(ANNA, elsewhere, scene)])).max(axis=-1) > 0.05
            assert changed.mean() > 0.6


def test_a_bag_on_the_far_side_is_hidden():
    """Camera 3 sees the right side, camera 4 the left: a bag hides a part of the body, its strap a few pixels."""

    def covered(camera: int, side: str) -> float:
        without, with_bag = (draw_person(ANNA._replace(bag=bag), camera, "a") for bag in (None, (side, "red")))
        return (pixels([without]) != pixels([with_bag])).any(axis=-1).mean()

    assert covered(3, "right") > 1.5 * covered(3, "left") > 0
    assert covered(4, "left") > 1.5 * covered(4, "right") > 0


def histograms(split) -> np.ndarray:
    bins = np.minimum(pixels(split.images) * 4, 3).astype(int).reshape(len(split), -1, 3) @ (16, 4, 1)
    return np.stack([np.bincount(row, minlength=64) for row in bins]) / bins.shape[1]


def raw(split) -> np.ndarray:
    return pixels(split.images).reshape(len(split), -1)


def strips_by_camera(split) -> np.ndarray:
    """Mean colors of eight strips of the body from head to feet, in standard deviations under that camera."""
    strips = pixels(split.images)[:, :, 8:24].reshape(len(split), 8, -1, 3).mean(axis=2).reshape(len(split), -1)
    cameras = np.array(split.cameras)
    for camera in CAMERAS:
        seen = strips[cameras == camera]
        strips[cameras == camera] = (seen - seen.mean(axis=0)) / seen.std(axis=0)
    return strips


def chance(split) -> np.ndarray:
    return np.random.default_rng(len(split)).normal(size=(len(split), 8))


def mean_average_precision(toy, features) -> float:
    """Market-1501's: images of the query's identity from its own camera do not count."""
    queries, gallery = features(toy.query), features(toy.gallery)
    identities, cameras = np.array(toy.gallery.identities), np.array(toy.gallery.cameras)
    precisions = []
    for query, identity, camera in zip(queries, toy.query.identities, toy.query.cameras, strict=True):
        counts = (identities != identity) | (cameras != camera)
        order = np.argsort(np.linalg.norm(gallery[counts] - query, axis=1), kind="stable")
        hits = np.flatnonzero(identities[counts][order] == identity)
        assert len(hits) == 15  # three images under each of the other cameras
        precisions.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    return float(np.mean(precisions))


def test_global_features_do_not_identify_people(toy):
    assert mean_average_precision(toy, chance) < 0.08
    assert mean_average_precision(toy, histograms) < 0.15
    assert mean_average_precision(toy, raw) < 0.15


def test_local_features_identify_people(toy):
    """Crude as it is, a reader that knows each camera's light and looks from head to feet does far better."""
    assert 0.25 < mean_average_precision(toy, strips_by_camera) < 0.6


def test_a_camera_changes_images_more_than_a_person_does(toy):
    """The nearest neighbor in raw pixels is usually another person under the same camera."""
    queries, gallery = raw(toy.query), raw(toy.gallery)
    nearest = [int(np.linalg.norm(gallery - query, axis=1).argmin()) for query in queries]
    same = np.array(toy.gallery.cameras)[nearest] == toy.query.cameras
    assert same.mean() > 0.9
