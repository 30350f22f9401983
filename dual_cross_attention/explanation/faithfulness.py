"""Whether a map is true: deletion and insertion of patches in the order that a map ranks them.

Source: Petsiuk, Das & Saenko, "RISE" (BMVC 2018). Deletion replaces the patches with the largest values first, by the
mean color; a faithful map lets the probability fall early. Insertion starts from a blurred image and restores the
patches with the largest values first; a faithful map lets it rise early. A curve is the probability of the class that
is predicted for the whole image, divided by its value there, and a score is the mean of a curve. Scores of two models
cannot be compared, so each map's score is given as its gain over a random map of the same model and image.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from dual_cross_attention.devices import autocast
from dual_cross_attention.errors import InputError
from dual_cross_attention.explanation.gradient_rollout import gradient_rollout
from dual_cross_attention.explanation.maps import MAP_NAMES, MapName, attention_maps
from dual_cross_attention.inference.inputs import image_sources
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.inference.reading import read_batches

STEPS = 18
BLUR = 1 / 16
"""Standard deviation of the blur, in shorter sides of the image."""
RANDOM = "random"
BATCH_SIZE = 128
"""Changed images of one forward pass."""

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Curves:
    """Probability of the predicted class, relative to the whole image, as patches are deleted or inserted.

    Args:
        deletion, insertion: (B, steps + 1) float32; column k has round(k / steps · N) patches deleted or inserted.
    """

    deletion: Tensor
    insertion: Tensor

    def scores(self) -> tuple[Tensor, Tensor]:
        """Area under each curve over shares 0..1, by trapezoids: deletion and insertion, (B,) each."""
        dx = 1 / (self.deletion.shape[1] - 1)
        return torch.trapezoid(self.deletion, dx=dx), torch.trapezoid(self.insertion, dx=dx)


@dataclass(frozen=True)
class Faithfulness:
    """Of one map, over n images. Gains are in units of the whole image's probability; larger is better, 0 is random.

    Args:
        deletion: (n,) float32, score of the random map minus that of the map.
        insertion: (n,) float32, score of the map minus that of the random map.
    """

    deletion: Tensor
    insertion: Tensor

    @property
    def mean(self) -> float:
        """Of deletion and insertion gains over all images, by which maps are compared."""
        return (self.deletion.mean().item() + self.insertion.mean().item()) / 2


def map_names(loaded: LoadedModel, with_gradient: bool = True) -> list[MapName]:
    """The maps that a model has."""
    has_glca = "glca" in loaded.model.predicting_branches
    without = {*([] if has_glca else ["glca", "product"]), *([] if with_gradient else ["gradient"])}
    return [name for name in MAP_NAMES if name not in without]


def measure_faithfulness(
    loaded: LoadedModel,
    images: Iterable,
    names: Sequence[MapName] | None = None,
    steps: int = STEPS,
    batch_size: int = 16,
    num_workers: int = 0,
    seed: int = 0,
) -> dict[str, Faithfulness]:
    """Deletion and insertion gains of the maps of a classifier over its random map.

    The probability is the vote's, of SA and GLCA where both predict, and not calibrated. An image that cannot be read
    is left out.

    Args:
        loaded: a classifier.
        images: paths, PIL images, arrays or tensors, as in `LoadedModel.predict`.
        names: maps to measure; None: all that the model has (see `map_names`).
        steps: of each curve.
        batch_size: images that are read at once.
        num_workers: that read images.
        seed: of the random maps, one an image; the same images in the same order get the same ones.

    Raises:
        InputError: a re-identification model, a map that the model does not have, or no image that can be read.
    """
    if loaded.task == "reid":
        raise InputError("faithfulness: expected a classifier, got a re-identification model")
    names = map_names(loaded) if names is None else names
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    batches = read_batches(image_sources(images)[0], loaded.transform, batch_size, num_workers, loaded.device)

    def predict(batch: Tensor) -> Tensor:
        with autocast(loaded.device, loaded.precision):
            return loaded.model.predict(batch).float()

    for batch in batches:
        if batch.images is None:
            continue
        pixels = batch.images.to(loaded.device)
        with autocast(loaded.device, loaded.precision):
            maps = attention_maps(loaded.model, pixels)
        target = predict(pixels).argmax(dim=1)
        chance = torch.rand(maps.rollout.shape, generator=generator).to(loaded.device)
        random = deletion_insertion(predict, pixels, chance, target, steps).scores()
        for name in names:
            if name == "gradient":
                with autocast(loaded.device, loaded.precision):
                    values = gradient_rollout(loaded.model, pixels, target)
            else:
                values = maps.map(name)
            deletion, insertion = deletion_insertion(predict, pixels, values, target, steps).scores()
            found[name].append(((random[0] - deletion).cpu(), (insertion - random[1]).cpu()))
    if not any(found.values()):
        raise InputError("faithfulness: expected at least one image that can be read, got none")
    return {name: Faithfulness(*(torch.cat(each) for each in zip(*rows, strict=True))) for name, rows in found.items()}


@torch.no_grad()
def deletion_insertion(predict: Predict, images: Tensor, maps: Tensor, target: Tensor, steps: int = STEPS) -> Curves:
    """Deletion and insertion curves of a batch.

    Args:
        predict: from normalized images, (n, 3, H, W), to probabilities, (n, classes).
        images: (B, 3, H, W) normalized: 0 is the mean color of the training data, which deletion fills in.
        maps: (B, h, w); of equal values, the first patch in reading order comes first.
        target: (B,) class whose probability is followed.
        steps: of each curve; at each, another 1/steps of the patches is changed.
    """
    batch, patches = len(images), maps[0].numel()
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)  # of each patch in the order
    counts = torch.tensor([round(step / steps * patches) for step in range(steps + 1)], device=images.device)
    changed = (place[:, None] < counts[:, None]).view(batch * (steps + 1), 1, *maps.shape[1:]).float()
    changed = F.interpolate(changed, size=images.shape[-2:], mode="nearest").bool()
    repeated = images.repeat_interleave(steps + 1, dim=0)
    blurred = blur(images).repeat_interleave(steps + 1, dim=0)
    classes = target.repeat_interleave(steps + 1)

    def probabilities(pixels: Tensor) -> Tensor:
        parts = zip(pixels.split(BATCH_SIZE), classes.split(BATCH_SIZE), strict=True)
        return torch.cat([predict(part).gather(1, of[:, None])[:, 0] for part, of in parts]).view(batch, steps + 1)

    deleted = probabilities(repeated.masked_fill(changed, 0.0))
    inserted = probabilities(torch.where(changed, repeated, blurred))
    whole = deleted[:, :1]
    return Curves(deleted / whole, inserted / whole)


def blur(images: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation of `BLUR` shorter sides, (B, 3, H, W)."""
    sigma, (height, width) = BLUR * min(images.shape[-2:]), images.shape[-2:]
    size = 2 * math.ceil(2 * sigma) + 1
    # The reflected border is narrower than the image.
    kernel = [min(size, 2 * (side - 1) + 1) for side in (width, height)]
    return v2.functional.gaussian_blur(images, kernel, [sigma, sigma])
