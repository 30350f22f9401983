"""Figures: what they show, in the words and the places that it is in."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from dual_cross_attention import InputError, load_model
from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.explanation.figures import display_name, draw_explanations, outline
from dual_cross_attention.inference.prediction import Prediction
from dual_cross_attention.inference.reid_calibration import CalibratedDistance, ReIDCalibration


@pytest.fixture
def explanation():
    random = np.random.default_rng(0)
    local = np.zeros((4, 6), dtype=bool)
    local[1, 2] = local[1, 3] = True
    top = [("001.Black_footed_Albatross", 0.625), ("$a$ <b>", 0.25)]
    predictions = {name: Prediction(None, *top[0], None, top) for name in ("together", "sa", "glca")}
    maps = {name: random.random((4, 6), dtype=np.float32) for name in ("rollout", "glca")}
    image = random.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    layers = random.random((7, 4, 6), dtype=np.float32)
    return Explanation("a/$b$.jpg", **maps, layers=layers, local=local, predictions=predictions, image=image)


def words(figure: Figure) -> str:
    """All text of a figure that is drawn without an error."""
    figure.canvas.draw()
    texts = figure.findobj(lambda each: hasattr(each, "get_text") and each.get_visible())
    return "\n".join(each.get_text() for each in texts)


def test_a_figure_names_what_it_shows(explanation):
    found = words(explanation.figure())
    for expected in (
        "a/$b$.jpg",
        "rollout (SA), outlined:\nlocal tokens (top 8 % of it)",
        "GLCA's attention",
        "rollout × GLCA's attention",
        "% per patch",
        "SA and GLCA together",
        " 62.5 %  Black footed Albatross\n 25.0 %  $a$ <b>",
        "probability, not calibrated",
    ):
        assert expected in found, expected
    assert "layer" not in found and "crop" not in found and "unknown" not in found


def test_a_figure_without_glca_and_with_all_extras(explanation):
    for crop, keep_aspect, words in (
        ((1.0, 1.0), False, []),
        ((1.0, 1.0), True, ["aspect ratio"]),
        ((0.8, 0.75), False, ["80 % of the height", "75 % of the width"]),
        ((0.8, 0.75), True, ["80 % of the height", "aspect ratio"]),
    ):
        said = replace(explanation, crop=crop, keep_aspect=keep_aspect).crop_words
        assert all(word in said for word in words) and bool(said) == bool(words)
    plain = replace(explanation, glca=None, local=None, gradient=explanation.glca, crop=(0.8, 0.75), model_name="run_1")
    plain = replace(plain, is_calibrated=True, predictions={"sa": replace(plain.predictions["sa"], known=False)})
    figure = plain.figure(show_layers=True)
    found = words(figure)
    for expected in ("80 % of the height and 75 % of the width", "run_1", "gradient × rollout", "layer 7", ": unknown"):
        assert expected in found, expected
    assert "calibrated probability" in found and "GLCA" not in found


def test_random_local_tokens_are_not_called_rollout(explanation):
    found = words(replace(explanation, local_queries="random", predictions={}).figure())
    assert "random" in found and "of it" not in found


def test_two_models_are_two_rows(explanation):
    figure = draw_explanations([replace(explanation, model_name=name) for name in ("baseline", "dcal")])
    found = words(figure)
    assert "baseline" in found and "dcal" in found and found.count("image") == 2
    assert figure.get_size_inches()[1] > 1.5 * explanation.figure().get_size_inches()[1]


def test_letters_are_legible_at_800_pixels(explanation):
    figure = explanation.figure(show_layers=True)
    figure.canvas.draw()
    assert figure.get_size_inches()[0] == 8
    sizes = [each.get_fontsize() for each in figure.findobj(lambda each: hasattr(each, "get_fontsize"))]
    assert min(sizes) >= 9


def test_the_outline_is_the_border_of_the_mask():
    """Around two patches in a row: 6 sides, none between them."""
    axes = Figure().subplots()
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 2] = mask[1, 3] = True
    outline(axes, mask, (32, 48, 3))
    sides = {tuple(map(tuple, (segment + 0.5).tolist())) for segment in axes.collections[0].get_segments()}
    around = {((x, y), (x + 8.0, y)) for x in (16.0, 24.0) for y in (8.0, 16.0)}
    around |= {((x, 8.0), (x, 16.0)) for x in (16.0, 32.0)}
    assert sides == around


def test_an_image_that_was_not_read_or_kept_is_refused(explanation):
    with pytest.raises(InputError, match="keep_image"):
        replace(explanation, image=None).figure()
    with pytest.raises(InputError, match="no image"):
        Explanation("a.jpg", error="it is no image").figure()


def test_names_for_people():
    assert display_name("002.Groove_billed_Ani") == "Groove billed Ani"
    assert display_name("7") == "7" and display_name("3.14") == "3.14" and display_name("a\nb") == "a\\nb"


@pytest.mark.parametrize("method", ["pwca", "cosine"])
def test_a_pair(make_model, method):
    loaded = load_model(make_model("reid"), device="cpu")
    first, second = (np.random.default_rng(seed).integers(0, 256, (40, 20, 3), dtype=np.uint8) for seed in (0, 1))
    pair = loaded.explain_pair(first, second, method, matches=3)
    features = loaded.embed([first, second]).double()
    assert pair.distance == pytest.approx(float((features[0] - features[1]).norm()), rel=1e-5)
    assert len(pair.matches) == 3 and pair.matches[0].score == pytest.approx(pair.scores.max())
    row, column = np.unravel_index(pair.scores.argmax(), pair.scores.shape)
    assert pair.matches[0][:2] == ((row // 2, row % 2), (column // 2, column % 2))
    found = words(pair.figure())
    assert f"{pair.distance:.3f}, no threshold: not calibrated" in found and "two separate passes" in found
    assert ("PWCA" if method == "pwca" else "cosine similarity") in found


def test_the_distance_of_a_calibrated_model_has_a_threshold(make_model):
    loaded = load_model(make_model("reid"), device="cpu")
    answer = CalibratedDistance((0.75, 0.5), 4.0, -8.0)
    loaded.calibration = ReIDCalibration(
        {"together": answer, "sa": answer, "glca": answer},
        (20, 100),
        "euclidean",
        0.01,
        100,
        300,
        90,
        390,
        "toy",
        "0",
        "1",
    )
    image, other = (np.random.default_rng(seed).integers(0, 256, (40, 20, 3), dtype=np.uint8) for seed in (0, 1))
    pair = loaded.explain_pair(image, other)
    same = 1 / (1 + np.exp(-4 + 8 * pair.distance))
    assert (pair.threshold, pair.gallery_size, pair.same) == (0.75, 20, pytest.approx(same))
    found = words(pair.figure())
    assert "threshold 0.750 (gallery of 20 identities)" in found and "not calibrated" not in found
