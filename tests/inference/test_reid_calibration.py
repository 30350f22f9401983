"""The calibration of re-identification in the header of a model file."""

import dataclasses
import json
import logging
import math

import numpy as np
import pytest
import torch

from dual_cross_attention import load_model
from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.data.fingerprint import DataFingerprint, SplitFingerprint
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibration_lines import calibration_lines
from dual_cross_attention.inference.model_files import read_model, read_model_file, save_model, write_calibration
from dual_cross_attention.inference.reid_calibration import CalibratedDistance, HeldOut, HeldOutRates, ReIDCalibration


@pytest.fixture
def reid_calibration() -> ReIDCalibration:
    """Of a model with SA and GLCA."""
    thresholds = {"together": (0.9, 0.8, 0.7), "sa": (0.85, 0.75, 0.75), "glca": (1.0, 0.6, 0.3)}
    rates = HeldOutRates((0.92, 0.81), (0.02, 0.013), (0.1, None), 0.2)
    return ReIDCalibration(
        {name: CalibratedDistance(values, 8.0, -10.0) for name, values in thresholds.items()},
        (1, 10, 100),
        "euclidean",
        0.01,
        101,
        500,
        300,
        800,
        "market1501",
        "00ff-11ee",
        "2025-01-31",
        HeldOut(50, 150, (1, 10), dict.fromkeys(thresholds, rates)),
    )


def test_thresholds_are_linear_in_the_logarithm_of_the_size(reid_calibration, caplog):
    for size, expected in ((1, 0.9), (10, 0.8), (100, 0.7), (3, 0.9 - 0.1 * math.log10(3)), (50, 0.8 - 0.1 * 0.69897)):
        assert reid_calibration.threshold(size) == pytest.approx(expected)
    assert reid_calibration.threshold(100, "sa") == 0.75
    assert reid_calibration.threshold(np.int64(10), "glca") == 0.6
    assert not caplog.records


def test_a_threshold_beyond_the_sizes_is_said_and_far_beyond_refused(reid_calibration, caplog):
    caplog.set_level(logging.WARNING, "dual_cross_attention")
    assert reid_calibration.threshold(1000) == pytest.approx(0.6)
    assert "extrapolated from 10 and 100" in caplog.text and "1,000" in caplog.text
    assert reid_calibration.threshold(1000, "glca") == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(InputError, match="1,001"):
        reid_calibration.threshold(1001)
    near = dataclasses.replace(reid_calibration, gallery_sizes=(10, 90, 100))
    caplog.clear()
    assert near.threshold(1000) == pytest.approx(0.9 - 0.4)  # from 10 and 100: 90 is too near to tell a slope
    assert near.threshold(5) == 0.9 and "accepts less" in caplog.text
    single = CalibratedDistance((0.9,), 8.0, -10.0)
    alone = dataclasses.replace(reid_calibration, gallery_sizes=(2,), answers={"together": single})
    with pytest.raises(InputError, match="extrapolate"):
        alone.threshold(3)


def test_what_is_no_gallery_size_or_branch_is_refused(reid_calibration):
    for size in (0, -1, 1.5, None, "10"):
        with pytest.raises(InputError, match="gallery_size"):
            reid_calibration.threshold(size)
    sa_only = dataclasses.replace(reid_calibration, answers={name: reid_calibration.answers["sa"] for name in ("sa",)})
    for method in (lambda: sa_only.threshold(10, "glca"), lambda: sa_only.probability_same(0.5, "glca")):
        with pytest.raises(InputError, match="branch: expected sa"):
            method()


def test_probability_same_has_the_shape_of_the_distances(reid_calibration):
    assert reid_calibration.probability_same(0.8).item() == pytest.approx(0.5)
    distances = [[0.0, 0.7], [0.9, 2.0]]
    expected = [[1 / (1 + math.exp(10 * d - 8)) for d in row] for row in distances]
    for given in (distances, np.array(distances, dtype=np.float32), torch.tensor(distances)):
        found = reid_calibration.probability_same(given)
        assert found.dtype == torch.float64 and found.shape == (2, 2)
        assert found.flatten().tolist() == pytest.approx(np.ravel(expected).tolist(), rel=1e-5)
    for bad in (-0.1, math.nan, [0.5, math.nan], "near"):
        with pytest.raises(InputError, match="distances"):
            reid_calibration.probability_same(bad)


def test_json_gives_the_same_calibration_again(reid_calibration):
    for each in (reid_calibration, dataclasses.replace(reid_calibration, held_out=None)):
        assert ReIDCalibration.from_json(each.to_json(), "here") == each


def test_a_model_file_keeps_it(make_model, reid_calibration, tmp_path):
    path = make_model("reid")
    plain = load_model(path, device="cpu")
    write_calibration(path, tmp_path / "copy.safetensors", reid_calibration, None)
    model = load_model(tmp_path / "copy.safetensors", device="cpu")
    assert model.calibration == reid_calibration and plain.calibration is None
    assert model.fingerprint() == plain.fingerprint()
    image = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    assert torch.equal(model.embed(image), plain.embed(image))


def test_a_calibration_of_another_task_or_model_is_refused(make_model, reid_calibration, calibration):
    birds, people, alone = make_model(), make_model("reid"), make_model("reid", ablation="sa_only")
    for path, wrong, said in (
        (birds, reid_calibration, "task 'reid'"),
        (people, calibration, "task 'fgvc'"),
        (alone, reid_calibration, "glca"),
    ):
        write_calibration(path, path, wrong, None)
        with pytest.raises(InputError, match=said):
            read_model(path)


CHANGES = {
    "a size of 0": ("[1, 10, 100]", "[0, 10, 100]"),
    "sizes that fall": ("[1, 10, 100]", "[1, 100, 10]"),
    "a size twice": ("[1, 10, 100]", "[1, 10, 10]"),
    "a size of text": ("[1, 10, 100]", '["1", 10, 100]'),
    "a size that is true": ("[1, 10, 100]", "[true, 10, 100]"),
    "no size": ("[1, 10, 100]", "[]"),
    "a size of 400 digits": ("[1, 10, 100]", f"[1, 10, {'9' * 400}]"),
    "a million sizes": ("[1, 10, 100]", f"{list(range(1, 10**6))}"),
    "too few thresholds": ("[0.9, 0.8, 0.7]", "[0.9, 0.8]"),
    "thresholds that grow": ("[0.9, 0.8, 0.7]", "[0.9, 0.7, 0.8]"),
    "a threshold below 0": ("[0.9, 0.8, 0.7]", "[0.9, 0.8, -0.1]"),
    "a threshold of NaN": ("[0.9, 0.8, 0.7]", "[NaN, 0.8, 0.7]"),
    "a threshold that is infinite": ("[0.9, 0.8, 0.7]", "[Infinity, 0.8, 0.7]"),
    "thresholds that are a number": ("[0.9, 0.8, 0.7]", "0.9"),
    "thresholds by name": ("[0.9, 0.8, 0.7]", '{"1": 0.9, "2": 0.8, "3": 0.7}'),
    "a slope of 0": ("-10.0", "0"),
    "a slope above 0": ("-10.0", "10"),
    "an intercept of text": ("8.0", '"8"'),
    "another distance": ('"euclidean"', '"os.system"'),
    "a distance that is a list": ('"euclidean"', "[]"),
    "a rate of 0": ('"fpir": 0.01', '"fpir": 0'),
    "a rate of 2": ('"fpir": 0.01', '"fpir": 2'),
    "no identities": ('"identities": 101', '"identities": 0'),
    "images that are a fraction": ('"images": 800', '"images": 0.5'),
    "a dataset that is a number": ('"market1501"', "1"),
    "answers that are a list": ('{"together": {', '[{"together": {'),
    "a held-out rate of 2": ("[0.02, 0.013]", "[2, 0.013]"),
    "too few held-out rates": ("[0.02, 0.013]", "[0.02]"),
    "a held-out rate that is missing": ("[0.02, 0.013]", "[null, 0.013]"),
    "held-out rates of other answers": (
        '"answers": {"together": {"thresholds": [0.92',
        '"answers": {"x": {"thresholds": [0.92',
    ),
    "a later version": (f'"format_version": {FORMAT_VERSION}', '"format_version": 99'),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_hostile_header_is_refused(change, reid_calibration):
    text = reid_calibration.to_json()
    assert change[0] in text
    with pytest.raises(InputError, match="here") as error:
        ReIDCalibration.from_json(text.replace(*change, 1), "here")
    assert len(f"{error.value}") < 500 and "\n" not in f"{error.value}"


@pytest.mark.parametrize("text", ["{", "[]", "1", "null", "[" * 100_000, '{"format_version": 2}', '{"task": "reid"}'])
def test_another_header_is_refused(text, make_model):
    class Text:
        def to_json(self):
            return text

    path = make_model("reid")
    write_calibration(path, path, Text(), None)
    with pytest.raises(InputError):
        read_model(path)


# --- the model card ---


def section(directory) -> str:
    return (directory / "README.md").read_text().split("## Calibration\n")[1].split("\n## ")[0]


def test_the_card_states_the_calibration(make_model, reid_calibration, tmp_path):
    path = make_model("reid")
    load_model(path, device="cpu").save_pretrained(tmp_path / "people")
    assert "not calibrated" in section(tmp_path / "people")
    before = (tmp_path / "people" / "README.md").read_text()
    file = tmp_path / "people" / "model.safetensors"
    write_calibration(file, file, reid_calibration, None)
    text = section(tmp_path / "people")
    assert "not calibrated" not in text and "## License" in (tmp_path / "people" / "README.md").read_text()
    assert (
        before.split("## Calibration")[0] == (tmp_path / "people" / "README.md").read_text().split("## Calibration")[0]
    )
    for words in ("101 identities", "300 query images", "market1501", "00ff-11ee", "| as used | 0.9000 | 0.8000 |"):
        assert words in text
    assert "with 10 enrolled" in text and "| as used | 1.30 |  |" in text and "| GLCA alone | 1.30 |" in text
    model = load_model(tmp_path / "people", device="cpu")
    model.save_pretrained(tmp_path / "again")
    assert section(tmp_path / "again") == text
    assert json.loads((tmp_path / "people" / "config.json").read_text())["calibration"]["gallery_sizes"] == [1, 10, 100]


def test_the_card_of_a_classifier_states_its_calibration(make_model, calibration, tmp_path):
    measured = {"ece_uncalibrated": 0.0821, "ece": 0.0314, "nll_uncalibrated": 0.7, "nll": 0.512}
    held_out = {"images": 151, "sa": measured, "glca": measured, "together": measured, "kept": 0.943}
    path = make_model()
    write_calibration(path, path, dataclasses.replace(calibration, held_out=held_out), None)
    model = load_model(path, device="cpu")
    assert model.calibration.held_out == held_out
    model.save_pretrained(tmp_path / "birds")
    text = section(tmp_path / "birds")
    for words in ("300 images of `folder`", "split `val`", "151 images", "94.3 %", "| as used | 2.000 | 8.21 | 3.14 |"):
        assert words in text
    assert "no numbers" in "\n".join(calibration_lines(calibration))  # of a file from before they were kept


def test_a_card_without_the_section_stays(make_model, calibration, tmp_path):
    load_model(make_model(), device="cpu").save_pretrained(tmp_path / "birds")
    (tmp_path / "birds" / "README.md").write_text("my own words\n")
    file = tmp_path / "birds" / "model.safetensors"
    write_calibration(file, file, calibration, None)
    assert (tmp_path / "birds" / "README.md").read_text() == "my own words\n"


@pytest.mark.parametrize(
    "held_out", ["[]", "1", "{}", '{"images": 5, "kept": 2, "together": {}}', '{"images": 5, "kept": 0.5, "sa": [1]}']
)
def test_hostile_held_out_numbers_of_a_classifier_are_refused(make_model, calibration, held_out):
    text = calibration.to_json()
    assert "held_out" not in text  # as files were written before

    class Text:
        def to_json(self):
            return f'{text[:-1]}, "held_out": {held_out}}}'

    path = make_model()
    write_calibration(path, path, Text(), None)
    with pytest.raises(InputError, match="calibration"):
        read_model(path)


def test_names_in_a_card_cannot_leave_their_line(make_model, reid_calibration, tmp_path):
    odd = dataclasses.replace(reid_calibration, dataset="a\n## License\n`b`|c")
    path = make_model("reid")
    write_calibration(path, path, odd, None)
    load_model(path, device="cpu").save_pretrained(tmp_path / "people")
    assert (tmp_path / "people" / "README.md").read_text().count("\n## License") == 1


def test_a_model_that_is_saved_again_keeps_it(make_model, reid_calibration, tmp_path):
    file = read_model_file(make_model("reid"))
    data = DataFingerprint("market1501", 7, "ff", {"train": SplitFingerprint(10, "aa")})
    path = tmp_path / "best.safetensors"
    save_model(path, file.state, file.config, file.classes, file.metrics, data, None, reid_calibration)
    assert load_model(path, device="cpu").calibration == reid_calibration
