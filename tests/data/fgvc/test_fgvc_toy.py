"""The toy set: the same everywhere, balanced, and told apart by small parts alone."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from dual_cross_attention.data import draw_toy, load_fgvc
from dual_cross_attention.data.synthetic.birds import SPECIES, draw_bird

# SHA-256 of the pixels, first 16 digits: a change of one of them is another dataset, with other results.
PIXELS = {(0, "train 0"): "39a67161014a662a", (3, "train 3"): "76e5e8c01fa713df", (9, "test 499"): "6151912acfc92448"}


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(np.float64)


@pytest.fixture(scope="module")
def toy():
    return load_fgvc("toy", None)


@pytest.mark.parametrize(("species", "scene"), PIXELS)
def test_pixels_stay_the_same(species, scene):
    digest = hashlib.sha256(draw_bird(species, scene).tobytes()).hexdigest()
    assert digest[:16] == PIXELS[species, scene]


def test_set_is_balanced_and_made_of_those_birds(toy):
    assert (toy.name, len(toy.classes), len(set(toy.classes))) == ("toy", 10, 10)
    assert toy.classes[3] == "orange_capped_white_barred"
    assert set(Counter(toy.train.labels).values()) == {250}
    assert set(Counter(toy.test.labels).values()) == {50}
    assert toy.test.images[499].tobytes() == draw_bird(toy.test.labels[499], "test 499").tobytes()
    assert all((image.mode, image.size) == ("RGB", (64, 64)) for image in toy.train.images)
    assert len({image.tobytes() for image in (*toy.train.images, *toy.test.images)}) == 3000


def test_smaller_sets_start_with_the_same_images(toy):
    small = draw_toy(train_per_species=2, test_per_species=1)
    assert (len(small.train), len(small.test)) == (20, 10)
    assert [p.tobytes() for p in small.train.images] == [p.tobytes() for p in toy.train.images[:20]]


def test_species_differ_in_small_parts_only():
    """Same scene, two species: only pixels of the parts that differ do, and they are few and close together."""
    for scene in ("a", "b", "c", "d", "e", "f"):
        drawn = pixels(draw_bird(species, scene) for species in range(len(SPECIES)))
        for one in range(len(SPECIES)):
            for other in range(one):
                differs = (drawn[one] != drawn[other]).any(axis=-1)
                parts = sum(a != b for a, b in zip(SPECIES[one], SPECIES[other], strict=True))
                assert 0.003 * parts < differs.mean() < 0.03 * parts
                assert all(np.ptp(where) < 18 * parts for where in np.nonzero(differs))


def test_global_colors_do_not_identify_the_species(toy):
    """The best linear reading of a color histogram (8×8×8 bins) is wrong for a third of the test images or more."""

    def histograms(images) -> np.ndarray:
        bins = (pixels(images) // 32).astype(int).reshape(len(images), -1, 3) @ (64, 8, 1)
        counts = np.stack([np.bincount(row, minlength=512) for row in bins]) / 64
        return np.concatenate([counts, np.ones((len(counts), 1))], axis=1)

    seen, unseen = histograms(toy.train.images), histograms(toy.test.images)
    targets = np.eye(10)[toy.train.labels]
    accuracies = []
    for ridge in (0.1, 1.0, 10.0, 100.0):
        weights = np.linalg.solve(seen.T @ seen + ridge * np.eye(seen.shape[1]), seen.T @ targets)
        accuracies.append(((unseen @ weights).argmax(axis=1) == toy.test.labels).mean())
    assert 0.1 < max(accuracies) < 0.66
