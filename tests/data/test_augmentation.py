"""Color jitter, timm's policies, aspect ratio and interpolation of the resize."""

import json
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from torchvision.transforms import v2

from dual_cross_attention import InputError
from dual_cross_attention.configs import FGVCConfig
from dual_cross_attention.data.augmentation import AutoAugment, CropToAspect, extra_augmentation
from dual_cross_attention.data.dataset import ImageDataset
from dual_cross_attention.data.images import ImageList
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.data.samplers import SampleKey
from dual_cross_attention.data.transforms import reid_train_transform, test_transform, train_transform

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
POLICIES = ["rand-m9-mstd0.5-inc1", "rand-m5-n3-tweights", "augmix-m3-w3", "original-mstd0.5", "v0", "3a"]


def noise(height=24, width=32):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_is_timms_under_torchs_seed(policy):
    """timm's own transform with the generators that it draws from seeded by a number of torch's generator."""
    options = {"translate_const": 10, "img_mean": (102, 128, 153), "interpolation": 3}
    kinds = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    theirs = kinds.get(policy.split("-")[0], auto_augment_transform)(policy, options)
    ours, image, seen = AutoAugment(policy, (24, 32), MEAN), noise(), []
    for seed in range(8):
        torch.manual_seed(seed)
        drawn = int(torch.randint(2**31, ()))
        random.seed(drawn)
        np.random.seed(drawn)
        expected = np.asarray(theirs(image))
        random.seed(99)
        np.random.seed(99)
        states = random.getstate(), np.random.get_state()[1].copy()
        torch.manual_seed(seed)
        seen.append(ours(v2.functional.pil_to_tensor(image)).permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(seen[-1], expected)
        assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()
    assert any((one != seen[0]).any() for one in seen[1:])


@pytest.mark.parametrize("kind", ["fgvc", "reid"])
def test_a_sample_depends_on_its_key_alone(kind):
    """Not on the generators of Python and NumPy, nor on which process reads it."""
    make = {"fgvc": lambda **more: train_transform((16, 16), (20, 20), MEAN, STD, **more)}
    make["reid"] = lambda **more: reid_train_transform((24, 12), MEAN, STD, **more)
    transform = make[kind](color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1")
    dataset = ImageDataset(ImageList([noise()], [0]), transform, training=True, seed=3)
    expected = dataset[SampleKey(2, 0, 1)]["image"]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[SampleKey(2, 0, 1)]["image"], expected)
    assert not torch.equal(again[SampleKey(3, 0, 1)]["image"], expected)
    plain = ImageDataset(ImageList([noise()], [0]), make[kind](), training=True, seed=3)
    assert not torch.equal(plain[SampleKey(2, 0, 1)]["image"], expected)


@pytest.mark.parametrize(
    "policy",
    [
        *("nope", "rand-x9", "rand-mm", "rand-m9-tnothing", "rand-t3", "original-m9", "", "3a-q"),
        *("rand-n9999999-m1", "rand-n101", "rand-m99999", "rand-m9-p1.5", "augmix-w101", "augmix-m3-d9999"),
    ],
)
def test_unknown_policies(policy):
    with pytest.raises(InputError, match=r"auto_augment.*rand-m9-mstd0.5-inc1"):
        AutoAugment(policy, (24, 32), MEAN)


def test_an_empty_policy_is_none():
    """As of a file of settings: a run with it resumes with and without."""
    assert FGVCConfig(auto_augment="").auto_augment is None
    assert AutoAugment("rand-n100-m1000-mstd101-p1", (24, 32), MEAN).augment.num_layers == 100


def test_color_jitter_scales_as_timm():
    """A gray image has no contrast and no saturation, so it is scaled by the factor of brightness."""
    (jitter,) = extra_augmentation(0.4, None, (8, 8), MEAN, "bicubic")
    gray = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    torch.manual_seed(0)
    values = torch.stack([jitter(gray).float().mean() for _ in range(200)])
    assert 59 <= values.min() < 65 and 135 < values.max() <= 141
    assert extra_augmentation(0.0, None, (8, 8), MEAN, "bicubic") == []


@pytest.mark.parametrize("size", [(20, 20), (24, 12), (12, 24)])
@pytest.mark.parametrize(("height", "width"), [(24, 32), (60, 20), (1, 300), (300, 1)])
def test_the_center_is_cropped_to_the_aspect_ratio(size, height, width):
    pixels = v2.functional.pil_to_tensor(noise(height, width))
    cropped = CropToAspect(size)(pixels)
    ours_height, ours_width = cropped.shape[-2:]
    assert ours_height == height or ours_width == width
    assert abs(ours_height * size[1] / size[0] - ours_width) <= size[1] / size[0] or ours_width == 1
    top, left = round((height - ours_height) / 2), round((width - ours_width) / 2)
    assert torch.equal(cropped, pixels[:, top : top + ours_height, left : left + ours_width])


def test_nothing_is_distorted_or_seen_of_what_is_cropped():
    """Of an image twice as wide as high, whose left and right quarter are red, the model sees the green center."""
    image = Image.new("RGB", (128, 64), (255, 0, 0))
    image.paste((0, 255, 0), (32, 0, 96, 64))
    zero, one = (0.0,) * 3, (1.0,) * 3
    green = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1).expand(3, 32, 32)
    for make in (test_transform, train_transform):
        torch.testing.assert_close(make((32, 32), (32, 32), zero, one, keep_aspect=True)(image), green)
        assert (make((32, 32), (32, 32), zero, one)(image)[0] > 0.9).any()


def test_interpolation():
    zero, one = (0.0,) * 3, (1.0,) * 3
    seen = {}
    for name in ("bicubic", "bilinear"):
        expected = v2.functional.resize(
            v2.functional.pil_to_tensor(noise()), [12, 12], v2.InterpolationMode(name), antialias=True
        )
        seen[name] = test_transform((12, 12), (12, 12), zero, one, name)(noise())
        torch.testing.assert_close(seen[name], expected / 255)
        reid = reid_train_transform((12, 12), zero, one, 0.0, 0, 0.0, interpolation=name)(noise())
        torch.testing.assert_close(reid, expected / 255)
    assert not torch.equal(seen["bicubic"], seen["bilinear"])


def test_the_preprocessing_of_a_model_records_them():
    saved = Preprocessing((8, 8), (10, 10), MEAN, STD, "bilinear", keep_aspect=True)
    assert Preprocessing.from_json(saved.to_json(), "a file") == saved
    earlier = json.loads(saved.to_json())
    del earlier["keep_aspect"]
    assert not Preprocessing.from_json(json.dumps(earlier), "a file").keep_aspect
    with pytest.raises(InputError, match="keep_aspect"):
        Preprocessing.from_json(json.dumps(earlier | {"keep_aspect": 1}), "a file")
