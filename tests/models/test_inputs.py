"""What `predict` and `embed` accept and refuse: one clear line each, and no cost to compiled or exported models."""

import numpy as np
import pytest
import torch
from PIL import Image

from dual_cross_attention import InputError, create_model

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def tiny(task="fgvc", **kwargs):
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return create_model("vit_tiny_patch16_224", 5, task, img_size=(32, 48), **sizes, **kwargs).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.mark.parametrize("name", ["predict", "embed"])
@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGES[0], ["(B, 3, 32, 48)", "(3, 32, 48)", "images[None]"]),
        (IMAGES[None], ["(1, 2, 3, 32, 48)"]),
        ((IMAGES * 255).byte(), ["torch.uint8", "normalize", "test_transform"]),
        ((IMAGES * 255).long(), ["torch.int64"]),
        (IMAGES.to(torch.complex64), ["torch.complex64"]),
        (IMAGES.double(), ["torch.float32", "got torch.float64"]),
        (IMAGES.bfloat16(), ["torch.float32", "got torch.bfloat16"]),
        (IMAGES.numpy(), ["NumPy array", "(2, 3, 32, 48)", "torch.from_numpy"]),
        (list(IMAGES), ["list of 2 tensors", "torch.stack"]),
        (IMAGES.tolist(), ["got list"]),
        (Image.new("RGB", (48, 32)), ["PIL.Image", "test_transform"]),
        (None, ["NoneType"]),
        (torch.rand(2, 3, 48, 32), ["(2, 3, 48, 32)", "resize to 32 x 48"]),
        (torch.rand(2, 3, 33, 48), ["resize to 32 x 48"]),
        (IMAGES.permute(0, 2, 3, 1), ["(2, 32, 48, 3)", "permute(0, 3, 1, 2)"]),
        (IMAGES[:, :1], ["(2, 1, 32, 48)", "expand"]),
        (torch.rand(2, 4, 32, 48), ["(2, 4, 32, 48)", "alpha"]),
        (IMAGES.to("meta"), ["cpu", "meta"]),
    ],
)
def test_other_images_are_refused_in_a_line(model, name, images, words):
    with pytest.raises(InputError) as caught:
        getattr(model, name)(images)
    assert "\n" not in f"{caught.value}"
    for word in ["images: expected", *words]:
        assert word in f"{caught.value}"


@pytest.mark.parametrize("ablation", ["full", "sa_only"])
def test_an_empty_batch_gives_an_empty_result(ablation):
    """As many columns and the dtype of a batch of two."""
    fgvc, reid = tiny(ablation=ablation), tiny("reid", ablation=ablation)
    calls = [fgvc.predict, fgvc.embed, reid.embed, lambda images: reid.embed(images, after_neck=True)]
    for branch in ("sa", "glca") if ablation == "full" else ("sa",):
        calls += [lambda images, b=branch: fgvc.predict(images, b), lambda images, b=branch: reid.embed(images, b)]
    for call in calls:
        empty, two = call(IMAGES[:0]), call(IMAGES)
        assert (empty.shape, empty.dtype) == ((0, two.shape[1]), two.dtype)
    with pytest.raises(InputError, match="expected"):  # empty, but of another size
        fgvc.predict(IMAGES[:0, :, :16])


def test_sizes_of_a_model_that_takes_any():
    model = tiny(dynamic_img_size=True)
    assert model.predict(torch.rand(2, 3, 48, 32)).shape == (2, 5)
    with pytest.raises(InputError, match=r"\(B, 3, H, W\).*multiples of \(8, 8\)"):
        model.predict(torch.rand(2, 3, 33, 32))


def test_other_channels_and_dtypes_of_the_model():
    gray = tiny(in_chans=1)
    assert gray.predict(IMAGES[:, :1]).shape == (2, 5)
    with pytest.raises(InputError, match=r"\(B, 1, 32, 48\)"):
        gray.predict(IMAGES)
    half = tiny().bfloat16()
    assert half.predict(IMAGES.bfloat16()).shape == (2, 5)
    with pytest.raises(InputError, match=r"torch\.bfloat16.*torch\.float32"):
        half.predict(IMAGES)


def test_autocast_converts_by_itself(model):
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.predict(IMAGES)
        assert torch.equal(model.predict(IMAGES.bfloat16()), expected)
        assert model.predict(IMAGES[:0]).shape == (0, 5)


def test_compiled_and_exported(model):
    """The checks leave no graph break, and nothing in an exported graph."""
    expected = model.predict(IMAGES)
    compiled = torch.compile(model.predict, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES), expected)

    class Predict(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model.predict(images)

    exported = torch.export.export(Predict(), (IMAGES,))
    torch.testing.assert_close(exported.module()(IMAGES), expected)


def test_numpy_as_the_message_says(model):
    given = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)
    assert model.predict(torch.from_numpy(given)).shape == (2, 5)


def test_values_that_are_not_normalized_are_pointed_out(model, caplog):
    caplog.set_level("WARNING")
    model.predict(IMAGES)
    assert not caplog.messages
    model.predict(IMAGES.abs() * 255 / IMAGES.abs().max())
    (said,) = caplog.messages
    assert "0 ... 255" in said and "normalize" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(model, value):
    images = IMAGES.clone()
    images[0, 0, 0, 0] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        model.predict(images)
