"""`LoadedModel.explain` and `explain`: the maps, predictions and pixels of each image, in order."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from dual_cross_attention import InputError, explain, load_model
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.explanation.maps import attention_maps
from dual_cross_attention.explanation.shown_image import ShownPreprocessing
from tests.helpers import TINY_VIT, random_images, tiny_model


def noisy(seed: int, height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_maps_and_predictions_are_those_of_the_model(make_model, tmp_path, calibration):
    loaded = load_model(make_model(), device="cpu")
    loaded.calibration = calibration
    (tmp_path / "broken.png").write_text("no image")
    images = [noisy(0), tmp_path / "broken.png", noisy(1), noisy(2), noisy(3), noisy(4)]
    found = list(loaded.explain(images, batch_size=2, top_k=2))
    assert [each.error is None for each in found] == [True, False, True, True, True, True]
    assert found[1].path == f"{tmp_path / 'broken.png'}" and found[1].rollout is None
    for each, image in zip(found, images, strict=True):
        if each.error:
            continue
        maps = attention_maps(loaded.model, loaded.transform(Image.fromarray(image))[None])
        for name in ("rollout", "layers", "local", "glca"):
            np.testing.assert_allclose(getattr(each, name), getattr(maps, name)[0].numpy(), rtol=1e-4, atol=1e-6)
        assert each.is_calibrated and each.default_map == "product"
        assert list(each.predictions) == ["together", "sa", "glca"]
        for answer, prediction in each.predictions.items():
            branch = None if answer == "together" else answer
            expected = loaded.predict(image, top_k=2, branch=branch)
            assert [label for label, _ in prediction.top] == [label for label, _ in expected.top]
            assert prediction.probability == pytest.approx(expected.probability, rel=1e-4)
            assert prediction.known == expected.known


def test_one_image_gives_one_explanation(make_model):
    loaded = load_model(make_model(ablation="sa_pwca"), device="cpu")
    found = loaded.explain(noisy(0), keep_image=False)
    assert found.glca is None and found.image is None and list(found.predictions) == ["sa"]
    assert found.default_map == "rollout" and found.map() is found.rollout
    with pytest.raises(InputError, match="GLCA"):
        found.map("glca")
    with pytest.raises(InputError, match="gradient=True"):
        found.map("gradient")
    assert loaded.explain(noisy(0), gradient=True).map("gradient").shape == found.rollout.shape


def test_a_reid_model_has_maps_and_no_predictions(make_model):
    loaded = load_model(make_model("reid"), device="cpu")
    found = loaded.explain(noisy(0))
    assert found.predictions == {} and found.rollout.shape == found.glca.shape == (4, 2)
    with pytest.raises(InputError, match="classifier"):
        loaded.explain(noisy(0), gradient=True)


def test_shown_pixels_are_the_region_that_the_model_sees():
    """The crop of a sharper image has the pixels of the model's input, where it is reduced to that size."""
    preprocessing = Preprocessing((32, 48), (40, 64), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    ramp = np.zeros((400, 640, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 255, 400)[:, None], np.linspace(0, 255, 640)
    tensor, shown = ShownPreprocessing(preprocessing)(Image.fromarray(ramp))
    assert torch.equal(tensor, preprocessing(Image.fromarray(ramp)))
    assert shown.shape == (256, 384, 3) and shown.dtype == torch.uint8
    pixels = (tensor * 0.25 + 0.5) * 255
    reduced = shown.permute(2, 0, 1).float().unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))
    assert (reduced - pixels).abs().max() < 2


def test_images_that_are_large_already_are_read_once(monkeypatch):
    from dual_cross_attention.explanation import shown_image

    monkeypatch.setattr(shown_image, "read_image", None)
    preprocessing = Preprocessing((384, 384), (400, 400), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert ShownPreprocessing(preprocessing)(Image.fromarray(noisy(0)))[1].shape == (384, 384, 3)


def timm_model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=(32, 48), **TINY_VIT).eval()


def test_a_plain_timm_model():
    model, images = timm_model(), random_images(3)
    found = list(explain(model, images, labels=list("abcde"), top_k=9))
    probabilities = model(images).softmax(1).detach()
    for each, expected in zip(found, probabilities, strict=True):
        assert each.rollout.shape == (4, 6) and each.layers.shape == (3, 4, 6) and each.glca is None
        assert each.predictions["sa"].label == "abcde"[expected.argmax()] and len(each.predictions["sa"].top) == 5
        assert each.predictions["sa"].probability == pytest.approx(float(expected.max()), rel=1e-4)
    one = explain(model, images[0])
    np.testing.assert_allclose(one.rollout, found[0].rollout, rtol=1e-4)
    assert one.predictions["sa"].label == f"class {probabilities[0].argmax()}"
    pixels = (images[0].permute(1, 2, 0).numpy() * 0.5 + 0.5) * 255  # of mean and std 0.5
    np.testing.assert_allclose(one.image, pixels.clip(0, 255), atol=0.51)
    assert model.training is False


def test_a_timm_model_on_pixels_and_a_created_model():
    found = explain(timm_model(), [noisy(0), noisy(1)])
    assert [each.image.shape for each in found] == [(256, 384, 3)] * 2
    assert explain(tiny_model().eval(), noisy(0)).glca.shape == (4, 6)


def test_loaded_models_and_refusals(make_model):
    loaded = load_model(make_model(), device="cpu")
    np.testing.assert_allclose(explain(loaded, noisy(0)).rollout, loaded.explain(noisy(0)).rollout)
    with pytest.raises(InputError, match="labels"):
        explain(loaded, noisy(0), labels=["a"])
    with pytest.raises(InputError, match="expected 5"):
        explain(timm_model(), noisy(0), labels=["a"])
    with pytest.raises(InputError, match="VisionTransformer"):
        explain(nn.Linear(2, 2), noisy(0))
    with pytest.raises(InputError, match="class token, mean"):
        explain(timm.create_model("vit_tiny_patch16_224", global_pool="avgmax", **TINY_VIT).eval(), noisy(0))
    with pytest.raises(InputError, match="eval"):
        explain(timm_model().train(), noisy(0))
    with pytest.raises(InputError, match="top_k"):
        loaded.explain(noisy(0), top_k=0)


def test_a_model_whose_output_is_not_finite(make_model):
    loaded = load_model(make_model(), device="cpu")
    with torch.no_grad():
        loaded.model.backbone.head.bias[0] = torch.nan
    assert "NaN" in loaded.explain(noisy(0)).error


def test_the_name_of_a_model_is_its_run(make_model, tmp_path):
    loaded = load_model(make_model(), device="cpu")
    assert loaded.short_name == "fgvc-0"
    loaded.source = "runs/birds/best.safetensors"
    assert loaded.short_name == "birds" == loaded.explain(noisy(0)).model_name


def test_replacing_a_field_keeps_the_maps(make_model):
    found = load_model(make_model(), device="cpu").explain(noisy(0))
    assert replace(found, path="a.jpg").glca is found.glca
