"""The calibration in the header of a model file, and what it does to predictions."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dual_cross_attention import load_model
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibration import CalibratedAnswer, Calibration
from dual_cross_attention.inference.model_files import read_model, write_calibration
from tests.helpers import softmax

IMAGES = [*np.random.default_rng(0).integers(0, 256, (12, 40, 50, 3), dtype=np.uint8)]


def changed(calibration, **answers):
    return dataclasses.replace(calibration, answers=calibration.answers | answers)


def test_json_gives_the_same_calibration_again(calibration):
    assert Calibration.from_json(calibration.to_json(), "here") == calibration


def test_a_file_keeps_its_tensors_and_all_else_of_its_header(make_model, calibration, tmp_path):
    path = make_model()
    before, metadata = load_file(path), safe_open(path, "pt").metadata()
    fingerprint = load_model(path, device="cpu").fingerprint()
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    for source, target in ((path, tmp_path / "copy.safetensors"), (link, link)):
        write_calibration(source, target, calibration, None)
        after = load_file(target)
        assert after.keys() == before.keys()
        assert all(after[name].numpy().tobytes() == before[name].numpy().tobytes() for name in before)
        assert all(after[name].dtype == before[name].dtype for name in before)
        assert safe_open(target, "pt").metadata() == metadata | {"calibration": calibration.to_json()}
        model = load_model(target, device="cpu")
        assert model.calibration == calibration and model.fingerprint() == fingerprint
    assert link.is_symlink() and not list(tmp_path.glob("*.tmp"))
    write_calibration(path, path, dataclasses.replace(calibration, images=5), None)  # a second one replaces it
    assert load_model(path, device="cpu").calibration.images == 5


def test_a_directory_of_save_pretrained_says_it_twice(make_model, calibration, tmp_path):
    load_model(make_model(), device="cpu").save_pretrained(tmp_path / "birds")
    file = tmp_path / "birds" / "model.safetensors"
    write_calibration(file, file, calibration, None)
    described = json.loads((tmp_path / "birds" / "config.json").read_text())
    assert described["calibration"] == json.loads(load_model(tmp_path / "birds").calibration.to_json())
    assert described["labels"] == load_model(tmp_path / "birds").labels


def test_what_cannot_be_written_leaves_the_file(make_model, calibration, tmp_path):
    path = make_model()
    before = path.read_bytes()
    with pytest.raises(InputError, match="cannot write"):
        write_calibration(path, tmp_path / "missing" / "copy.safetensors", calibration, None)
    assert path.read_bytes() == before


def test_predictions_are_calibrated_and_their_order_is_the_same(make_model, calibration):
    path = make_model()
    plain = load_model(path, device="cpu")
    logits = plain.model.predict_logits(torch.stack([plain.transform(image) for image in map(pil, IMAGES)]))
    sa, glca = (logits[name].double().numpy() for name in ("sa", "glca"))
    powers = ((softmax(sa) + softmax(glca)) / 2) ** (1 / 2.0)
    expected = {
        None: powers / powers.sum(axis=1, keepdims=True),
        "sa": softmax(sa / 1.5),
        "glca": softmax(glca / 0.8),
    }
    for branch, probabilities in expected.items():
        ordered = np.sort(probabilities.max(axis=1))
        name = branch or "together"
        answer = CalibratedAnswer(calibration.answers[name].temperature, "probability", ordered[4:6].mean(), 0.5)
        write_calibration(path, path, changed(calibration, **{name: answer}), None)
        before = list(plain.predict(IMAGES, top_k=7, branch=branch))
        after = list(load_model(path, device="cpu").predict(IMAGES, top_k=7, branch=branch))
        for prediction, plainly, row in zip(after, before, probabilities, strict=True):
            assert [label for label, _ in prediction.top] == [label for label, _ in plainly.top]
            assert [value for _, value in prediction.top] == pytest.approx(np.sort(row)[::-1].tolist(), rel=1e-4)
            assert prediction.probability == prediction.top[0][1] != plainly.probability
            assert prediction.known is bool(row.max() >= answer.threshold) and plainly.known is None
        assert sum(prediction.known for prediction in after) == 7


def pil(array):
    from PIL import Image

    return Image.fromarray(array)


def test_the_top_answer_never_changes(calibration):
    random = torch.Generator().manual_seed(0)
    logits = {name: 5 * torch.randn(20_000, 9, generator=random) for name in ("sa", "glca")}
    mean = torch.stack([each.double().softmax(-1) for each in logits.values()]).mean(0)
    for temperature in (0.02, 0.5, 3.0, 50.0):
        answer = CalibratedAnswer(temperature, "probability", 0.5, 1.0)
        fitted = changed(calibration, together=answer, sa=answer)
        assert torch.equal(fitted.apply(logits)[0].argmax(-1), mean.argmax(-1))
        alone = fitted.apply({"sa": logits["sa"]}, "sa")[0]
        assert torch.equal(alone.argmax(-1), logits["sa"].argmax(-1))


def test_an_uncalibrated_model_says_so_once(make_model, calibration, caplog):
    caplog.set_level(logging.INFO, "dual_cross_attention")
    path = make_model()
    model = load_model(path, device="cpu")
    assert model.predict(IMAGES[0]).known is None and model.predict(IMAGES[1]).known is None
    assert len([record for record in caplog.records if "not calibrated" in record.message]) == 1
    caplog.clear()
    write_calibration(path, path, calibration, None)
    assert load_model(path, device="cpu").predict(IMAGES[0]).known is not None
    assert not [record for record in caplog.records if "not calibrated" in record.message]


@pytest.mark.parametrize(
    ("settings", "change", "said"),
    [
        ({"ablation": "sa_only"}, {}, "glca"),
        ({}, {"extra": CalibratedAnswer(1.0, "probability", 0.5, 1.0)}, "extra"),
        ({}, {"sa": CalibratedAnswer(1.0, "agreement", 0.5, 1.0)}, "agreement"),
        ({"glca_start": 1.0}, {"together": CalibratedAnswer(1.0, "agreement", 0.5, 1.0)}, "agreement"),
    ],
)
def test_a_calibration_of_another_model_is_refused(make_model, calibration, settings, change, said):
    path = make_model(**settings)
    write_calibration(path, path, changed(calibration, **change), None)
    with pytest.raises(InputError, match=said):
        read_model(path)


def test_a_calibration_of_reid_is_refused(make_model, calibration):
    path = make_model("reid")
    write_calibration(path, path, calibration, None)
    with pytest.raises(InputError, match="reid"):
        read_model(path)
