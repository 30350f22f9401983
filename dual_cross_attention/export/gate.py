"""Compares an exported file with the model in PyTorch, float32 and eager, before the file gets its name."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dual_cross_attention.data.images import ImageSource
from dual_cross_attention.errors import InputError
from dual_cross_attention.export.graph import InferenceGraph
from dual_cross_attention.inference.model_files import SavedModel

BATCHES = (1, 2, 5)
"""Batch sizes that are compared; the images of each are others."""
MAX_LOG_PROBABILITY = 1e-4
"""|Δ log p| where p in PyTorch is at least `SMALL`."""
SMALL, MAX_SMALL = 1e-6, 1e-7
"""|Δ p| of the probabilities below `SMALL`."""
MAX_EMBEDDING = 1e-4
"""|Δ| of features, relative to the largest value of the image's feature."""
TIE = 1e-6
"""Patch tokens whose scores in PyTorch differ by at most this may replace each other as local tokens."""


@dataclass
class Comparison:
    """What an exported float32 file answers, compared with PyTorch. All numbers are the largest of all images.

    Args:
        images: number of compared images.
        batches: their batch sizes.
        log_probability: |Δ log p|, of all branches, where p is at least `SMALL`.
        small_probability: |Δ p| below that.
        embedding: |Δ| of features, relative to the largest value of the image's feature.
        rollout: |Δ| of the scores of the patch tokens; not limited.
        other_answers: images with another most probable class.
        other_local: images with other local tokens, but for ties.
        labels: whether names and order of the classes, the preprocessing and the calibration are equal.
    """

    images: int = 0
    batches: tuple[int, ...] = BATCHES
    log_probability: float = 0.0
    small_probability: float = 0.0
    embedding: float = 0.0
    rollout: float = 0.0
    other_answers: int = 0
    other_local: int = 0
    labels: bool = True

    def failures(self) -> list[str]:
        """What is beyond the limits, each with its number."""
        limits = {
            "|Δ log p|": (self.log_probability, MAX_LOG_PROBABILITY),
            f"|Δ p| below {SMALL:g}": (self.small_probability, MAX_SMALL),
            "|Δ embedding| relative to its largest value": (self.embedding, MAX_EMBEDDING),
            "images with another top-1": (self.other_answers, 0),
            "images with other local tokens": (self.other_local, 0),
        }
        found = [
            f"{name} is {value:.3g}, limit {limit:g}" for name, (value, limit) in limits.items() if not value <= limit
        ]
        return found if self.labels else ["labels, preprocessing or calibration are not those of the model", *found]

    def check(self) -> None:
        """Raises InputError with `failures`, if there are any."""
        if failures := self.failures():
            raise InputError(
                f"the exported graph does not compute what PyTorch does on {self.images} images, so no file is "
                f"written: {'; '.join(failures)}"
            )

    def lines(self, task: str, has_local: bool) -> list[str]:
        """What was measured, for the screen."""
        shown = []
        if task == "fgvc":
            shown.append(
                f"  |Δ log p| ≤ {self.log_probability:.1e} (limit {MAX_LOG_PROBABILITY:g}), same top-1 everywhere"
            )
        shown.append(f"  |Δ embedding| ≤ {self.embedding:.1e} of its largest value (limit {MAX_EMBEDDING:g})")
        if has_local:
            shown.append(f"  same local tokens; |Δ rollout| ≤ {self.rollout:.1e}")
        return shown

    def to_json(self) -> dict[str, Any]:
        """Values for the metadata of the file."""
        return {"passed": not self.failures(), **asdict(self)}


@dataclass
class _Largest:
    """Of one batch: gathers the comparison."""

    result: Comparison = field(default_factory=Comparison)

    def add(self, name: str, value: float) -> None:
        # A NaN is larger than any limit.
        setattr(self.result, name, max(getattr(self.result, name), float("inf") if np.isnan(value) else value))


def compare(saved: SavedModel, branches: list[str], exported: SavedModel, images: Sequence[ImageSource]) -> Comparison:
    """Compares answers to images, each read by its own model's preprocessing.

    Args:
        saved: the model in PyTorch, on CPU, float32.
        branches: the exported ones.
        exported: as `read_onnx` or `read_program` reads it.
        images: see `in_batches`.
    """
    graph, largest = InferenceGraph(saved, branches).eval(), _Largest()
    result = largest.result
    result.labels = same_metadata(saved, exported)
    for batch in in_batches(images):
        with torch.no_grad():
            expected = graph(torch.stack([saved.preprocessing(image) for image in batch]))
        wanted = dict(zip(graph.output_names, expected, strict=True))
        found = exported.model.run(torch.stack([exported.preprocessing(image) for image in batch]))
        result.images += len(batch)
        shapes = {name: tuple(value.shape) for name, value in wanted.items()}
        if {name: value.shape for name, value in found.items()} != shapes:
            raise InputError(f"the exported graph has other outputs or shapes than PyTorch for a batch of {len(batch)}")
        given = {name: torch.from_numpy(value) for name, value in found.items()}
        _compare_outputs(wanted, given, largest)
    return result


def same_metadata(saved: SavedModel, exported: SavedModel) -> bool:
    """Whether names and order of the classes, the preprocessing and the calibration are equal."""
    names = ("classes", "preprocessing", "calibration")
    return all(getattr(exported, name) == getattr(saved, name) for name in names)


def check_answers(saved: SavedModel, exported: SavedModel) -> None:
    """Checks what is independent of the dtype: metadata, and one finite row per image for the sizes in `BATCHES`.

    Raises:
        InputError: something differs, or values are NaN or infinite.
    """
    if not same_metadata(saved, exported):
        raise InputError("the exported file has other labels, preprocessing or calibration than the model")
    generator = torch.Generator().manual_seed(0)
    for size in BATCHES:
        found = exported.model.run(torch.randn(size, 3, *saved.preprocessing.img_size, generator=generator))
        for name, value in found.items():
            if len(value) != size or not np.isfinite(value).all():
                raise InputError(f"the exported graph's {name} of {size} images is not {size} rows of finite numbers")


def _compare_outputs(wanted: dict[str, Tensor], given: dict[str, Tensor], largest: _Largest) -> None:
    for name, expected in wanted.items():
        value = given[name]
        if name == "probabilities" or name.startswith("logits_"):
            one, other = (
                each.double() if name == "probabilities" else each.double().softmax(-1) for each in (expected, value)
            )
            is_small = one < SMALL
            difference = (one.clamp_min(1e-300).log() - other.clamp_min(1e-300).log()).abs()
            largest.add("log_probability", difference[~is_small].max().item())
            if is_small.any():
                largest.add("small_probability", (one - other).abs()[is_small].max().item())
            if name == "probabilities":
                largest.result.other_answers += int((one.argmax(-1) != other.argmax(-1)).sum())
        elif name == "embedding" or name.startswith("feature_"):
            scale = expected.abs().amax(-1, keepdim=True)
            largest.add("embedding", ((value - expected).abs() / scale).max().item())
        elif name == "rollout":
            largest.add("rollout", (value - expected).abs().max().item())
    if "local" in wanted:
        rows = zip(wanted["rollout"], wanted["local"].tolist(), given["local"].tolist(), strict=True)
        largest.result.other_local += sum(not same_but_for_ties(*row) for row in rows)


def same_but_for_ties(scores: Tensor, local: list[int], other: list[int]) -> bool:
    """Whether two sets of local tokens are equal, but for tokens whose scores differ by at most `TIE`.

    Args:
        scores: (N,) of the patch tokens.
        local, other: n indices each.
    """
    only_one, only_other = set(local) - set(other), set(other) - set(local)
    if len(set(local)) != len(local) or len(set(other)) != len(other) or len(only_one) != len(only_other):
        return False
    if not only_one:
        return True
    values = scores[sorted(only_one | only_other)]
    return (values.max() - values.min()).item() <= TIE


def in_batches(images: Sequence[ImageSource]) -> Iterator[list[ImageSource]]:
    """Batches of the sizes in `BATCHES`; images are used again if there are fewer."""
    first = 0
    for size in BATCHES:
        yield [images[(first + place) % len(images)] for place in range(size)]
        first += size
