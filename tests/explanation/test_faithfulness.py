"""Deletion and insertion against a closed form, on a model whose answer depends on one patch only."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from dual_cross_attention import InputError, load_model
from dual_cross_attention.explanation.faithfulness import (
    STEPS,
    deletion_insertion,
    map_names,
    measure_faithfulness,
)

SIDE, GRID = 8, (4, 6)
PATCH = (2, 3)
ROWS = slice(PATCH[0] * SIDE, (PATCH[0] + 1) * SIDE)
COLUMNS = slice(PATCH[1] * SIDE, (PATCH[1] + 1) * SIDE)
COUNTS = [round(step / STEPS * 24) for step in range(STEPS + 1)]


def predict(images):
    """Class 1 has 0.8 of the mean of one patch."""
    one = 0.8 * images[:, :, ROWS, COLUMNS].mean((1, 2, 3))
    return torch.stack([1 - one, one], dim=1)


def one_patch_image():
    image = torch.zeros(1, 3, GRID[0] * SIDE, GRID[1] * SIDE)
    image[:, :, ROWS, COLUMNS] = 1
    return image


def blurred_value() -> float:
    """Mean of the patch after the blur, by scipy."""
    sigma = GRID[0] * SIDE / 16
    blurred = gaussian_filter(
        one_patch_image()[0, 0].double().numpy(), sigma, mode="mirror", radius=math.ceil(2 * sigma)
    )
    return float(blurred[ROWS, COLUMNS].mean())


@pytest.mark.parametrize("place", [0, 5, 23])
def test_curves_and_scores_have_their_closed_form(place):
    """With the patch at some place of the order, deletion is 1 before it and 0 after it."""
    values = torch.arange(24, 0, -1).float()  # of the patches in reading order, the first one the largest
    index = PATCH[0] * GRID[1] + PATCH[1]
    order = [patch for patch in range(24) if patch != index]
    order.insert(place, index)
    maps = torch.empty(24)
    maps[order] = values
    curves = deletion_insertion(predict, one_patch_image(), maps.view(1, *GRID), torch.tensor([1]))
    deletion = [0.0 if count > place else 1.0 for count in COUNTS]
    insertion = [1.0 if count > place else blurred_value() for count in COUNTS]
    np.testing.assert_allclose(curves.deletion[0].numpy(), deletion, atol=1e-6)
    np.testing.assert_allclose(curves.insertion[0].numpy(), insertion, atol=1e-4)
    for score, curve in zip(curves.scores(), (deletion, insertion), strict=True):
        area = sum((one + other) / 2 for one, other in itertools.pairwise(curve)) / STEPS
        assert float(score[0]) == pytest.approx(area, abs=1e-4)


def test_equal_values_are_changed_in_reading_order():
    curves = deletion_insertion(predict, one_patch_image(), torch.zeros(1, *GRID), torch.tensor([1]))
    place = PATCH[0] * GRID[1] + PATCH[1]
    assert curves.deletion[0].tolist() == pytest.approx([float(count <= place) for count in COUNTS], abs=1e-6)


def test_images_of_a_batch_do_not_mix():
    images = torch.cat([one_patch_image(), one_patch_image() * 0.5 + 0.25])
    maps = torch.rand(2, *GRID, generator=torch.Generator().manual_seed(0))
    together = deletion_insertion(predict, images, maps, torch.tensor([1, 0]))
    for row in range(2):
        part = slice(row, row + 1)
        alone = deletion_insertion(predict, images[part], maps[part], torch.tensor([1, 0])[part])
        torch.testing.assert_close(together.deletion[part], alone.deletion)
        torch.testing.assert_close(together.insertion[part], alone.insertion)


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    (tmp_path / "broken.png").write_text("no image")
    return [paths[0], tmp_path / "broken.png", *paths[1:]]


def test_gains_are_differences_from_the_random_map(make_model, photos):
    """Derived again, map by map; an image that cannot be read is left out; the same call gives the same gains."""
    loaded = load_model(make_model(), device="cpu")
    assert map_names(loaded) == ["rollout", "glca", "product", "gradient"]
    found = measure_faithfulness(loaded, photos, steps=6)
    assert {len(each.deletion) for each in found.values()} == {3}
    again = measure_faithfulness(loaded, photos, ["glca"], steps=6)
    assert torch.equal(again["glca"].deletion, found["glca"].deletion)

    images = torch.stack([loaded.transform(path) for path in photos if path.name != "broken.png"])
    target = loaded.model.predict(images).argmax(1)
    chance = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    glca = torch.stack([torch.from_numpy(loaded.explain(path).glca) for path in photos if path.name != "broken.png"])
    random = deletion_insertion(loaded.model.predict, images, chance, target, 6).scores()
    scores = deletion_insertion(loaded.model.predict, images, glca, target, 6).scores()
    torch.testing.assert_close(found["glca"].deletion, random[0] - scores[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found["glca"].insertion, scores[1] - random[1], rtol=1e-3, atol=1e-5)
    mean = (found["glca"].deletion.mean() + found["glca"].insertion.mean()) / 2
    assert found["glca"].mean == pytest.approx(float(mean))


def test_maps_of_a_model_without_glca(make_model):
    assert map_names(load_model(make_model(ablation="sa_only"), device="cpu"), with_gradient=False) == ["rollout"]


def test_a_reid_model_and_no_images_are_refused(make_model, photos):
    with pytest.raises(InputError, match="classifier"):
        measure_faithfulness(load_model(make_model("reid"), device="cpu"), photos)
    with pytest.raises(InputError, match="none"):
        measure_faithfulness(load_model(make_model(), device="cpu"), photos[1:2])
