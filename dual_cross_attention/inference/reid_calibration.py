"""Calibration of re-identification: distances up to which an image is of an enrolled identity, and P(same).

It is in the header of a model file, which may be untrusted.
"""

import json
import logging
import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibration import TOGETHER
from dual_cross_attention.inference.json_values import count, number, reading, text
from dual_cross_attention.metrics.inputs import as_numbers, at_least_1
from dual_cross_attention.metrics.pair_probability import same_probability
from dual_cross_attention.text import short_repr

LOGGER = logging.getLogger(__name__)
DISTANCES = ("euclidean", "cosine")
BEYOND = 10
"""Galleries up to so many times the largest calibrated one get an extrapolated threshold."""
SPAN = 3
"""Factor between the largest gallery size and the one that the extrapolation starts from, at least."""
MOST_SIZES = 100
"""Of a calibration that is read."""


@dataclass(frozen=True)
class CalibratedDistance:
    """Calibration of the features of one answer: of a branch, or of the branches together.

    Args:
        thresholds: by gallery size: an image is of its nearest enrolled identity if that one's distance is at most
            this. They do not grow with the size.
        intercept, slope: P(same) is 1 / (1 + exp(−intercept − slope · distance)); slope < 0.
    """

    thresholds: tuple[float, ...]
    intercept: float
    slope: float


@dataclass(frozen=True)
class HeldOutRates:
    """Rates of one answer on identities that it was not fitted on, with thresholds fitted on the others.

    Args:
        thresholds: by gallery size.
        fpir: the false-positive identification rate that each threshold reaches, 0..1.
        fnir: the false-negative identification rate at it, 0..1; None where there is no mated search.
        nll: mean negative log-likelihood of P(same), in nats; 0.693 is that of 0.5 for all.
    """

    thresholds: tuple[float, ...]
    fpir: tuple[float, ...]
    fnir: tuple[float | None, ...]
    nll: float


@dataclass(frozen=True)
class HeldOut:
    """Measured on half of the identities, fitted on the other half.

    Args:
        identities, probes: of the half that was measured.
        gallery_sizes: numbers of enrolled identities.
        answers: by name, as of `ReIDCalibration`.
    """

    identities: int
    probes: int
    gallery_sizes: tuple[int, ...]
    answers: dict[str, HeldOutRates]


@dataclass(frozen=True)
class ReIDCalibration:
    """Calibration of a re-identification model, and which images it was fitted on.

    An image is as far from an identity as from the nearest enrolled image of it. The gallery size is the number of
    enrolled identities.

    Args:
        answers: by name: "together" for features of all branches that predict, as `LoadedModel.embed` gives them;
            "sa" and "glca" for those of one branch.
        gallery_sizes: those of the thresholds, ascending.
        distance: "euclidean" (not squared) or "cosine" (1 − cos), between features of `LoadedModel.embed`.
        fpir: the wanted false-positive identification rate: of searches for an identity that is not enrolled, the
            share that finds one.
        identities: that were enrolled, at most.
        gallery_images: of them.
        probes: images that were searched for.
        images: number of images that it was fitted on, probes and gallery.
        dataset: that of the images.
        data: digest of the images, as `SplitFingerprint.digest`, of queries and gallery.
        date: of the fit, YYYY-MM-DD.
        held_out: rates of a fit on half of the identities; None if there were too few.
    """

    answers: dict[str, CalibratedDistance]
    gallery_sizes: tuple[int, ...]
    distance: str
    fpir: float
    identities: int
    gallery_images: int
    probes: int
    images: int
    dataset: str
    data: str
    date: str
    held_out: HeldOut | None = None

    def threshold(self, gallery_size: int, branch: str | None = None) -> float:
        """The largest distance at which an image is of its nearest enrolled identity; farther ones are of none.

        Between calibrated sizes, thresholds are interpolated linearly in the logarithm of the size. Beyond the largest
        one they are extrapolated likewise, up to `BEYOND` times that size, with a warning in the log.

        Args:
            gallery_size: number of enrolled identities, at least 1.
            branch: "sa" or "glca", if features are of that branch alone.

        Raises:
            InputError: a size below 1 or too far beyond the calibrated ones, or a branch that is not calibrated.
        """
        gallery_size = at_least_1("gallery_size", gallery_size)
        sizes, thresholds = self.gallery_sizes, self._answer(branch).thresholds
        if gallery_size <= sizes[0]:
            if gallery_size < sizes[0]:
                self._warn(gallery_size, f"that of {sizes[0]:,} is taken, which accepts less")
            return thresholds[0]
        last = len(sizes) - 1
        if gallery_size <= sizes[last]:
            upper = bisect_left(sizes, gallery_size)
            return _at(gallery_size, sizes, thresholds, upper - 1, upper)
        lower = max((place for place, size in enumerate(sizes) if SPAN * size <= sizes[last]), default=None)
        if lower is None or gallery_size > BEYOND * sizes[last]:
            raise InputError(
                f"gallery_size: the model is calibrated for galleries of up to {sizes[last]:,} identities, and "
                f"{gallery_size:,} are too many to extrapolate to: calibrate it with dcal calibrate on more identities"
            )
        self._warn(gallery_size, f"the threshold is extrapolated from {sizes[lower]:,} and {sizes[last]:,}")
        return max(0.0, _at(gallery_size, sizes, thresholds, lower, last))

    def probability_same(self, distances: Tensor | float, branch: str | None = None) -> Tensor:
        """Probability that an image is of an identity at these distances, if same and different were equally likely
        before. It does not depend on the gallery's size: use `threshold` to decide.

        Args:
            distances: of any shape: a tensor, an array, a list or a number.
            branch: as of `threshold`.

        Returns:
            float64 of the same shape, on the CPU; a number gives a tensor of shape ().

        Raises:
            InputError: distances that are NaN or negative, or a branch that is not calibrated.
        """
        answer = self._answer(branch)
        values = as_numbers(distances, "distances").cpu().double()
        if not (values >= 0).all():
            raise InputError("distances: expected distances of 0 or more, got negative ones or NaN")
        return same_probability(values, answer.intercept, answer.slope)

    def even_distance(self, branch: str | None = None) -> float:
        """The distance at which P(same) is one half; at least 0. `branch` as of `threshold`."""
        answer = self._answer(branch)
        return max(0.0, -answer.intercept / answer.slope)

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps({"format_version": FORMAT_VERSION, "task": "reid", **asdict(self)})

    @classmethod
    def from_json(cls, content: str, source: str) -> "ReIDCalibration":
        """Reads what `to_json` wrote; `source` is where it is from, for errors.

        Raises:
            InputError: it is something else, of a later version, or has invalid numbers.
        """
        with reading(source):
            read = json.loads(content)
            check_version(read["format_version"], source)
            sizes = _sizes(read["gallery_sizes"])
            if read["distance"] not in DISTANCES:
                raise ValueError(f"distance: expected {' or '.join(DISTANCES)}, got {short_repr(read['distance'])}")
            fpir = number(read["fpir"], 0, 1)
            if not fpir:
                raise ValueError("fpir: expected a rate above 0")
            return cls(
                {text(name): _answer(values, len(sizes)) for name, values in read["answers"].items()},
                sizes,
                read["distance"],
                fpir,
                count(read["identities"]),
                count(read["gallery_images"]),
                count(read["probes"]),
                count(read["images"]),
                text(read["dataset"]),
                text(read["data"]),
                text(read["date"]),
                _held_out(read.get("held_out"), read["answers"].keys()),
            )

    def check_fits(self, branches: Iterable[str], predicting: Iterable[str], source: str) -> None:
        """Compares it with the model of the same file.

        Args:
            branches: those that the model has at inference.
            predicting: those whose features are concatenated.

        Raises:
            InputError: answers are missing or superfluous.
        """
        wanted = {TOGETHER, *branches}
        if self.answers.keys() != wanted:
            raise InputError(
                f"{source}: calibration: expected answers of {', '.join(sorted(wanted))}, got "
                f"{short_repr(sorted(self.answers))}"
            )

    def _answer(self, branch: str | None) -> CalibratedDistance:
        name = branch or TOGETHER
        if name not in self.answers:
            there = " or ".join(sorted(self.answers.keys() - {TOGETHER}))
            raise InputError(f"branch: expected {there}, which this model has, got {branch!r}")
        return self.answers[name]

    def _warn(self, gallery_size: int, what: str) -> None:
        LOGGER.warning(
            "the model is calibrated for galleries of %s to %s identities, not %s: %s",
            f"{self.gallery_sizes[0]:,}",
            f"{self.gallery_sizes[-1]:,}",
            f"{gallery_size:,}",
            what,
        )


def _at(size: int, sizes: tuple[int, ...], thresholds: tuple[float, ...], lower: int, upper: int) -> float:
    """The line through two calibrated sizes, in the logarithm of the size."""
    share = math.log(size / sizes[lower]) / math.log(sizes[upper] / sizes[lower])
    return thresholds[lower] + share * (thresholds[upper] - thresholds[lower])


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = tuple(count(value) for value in _listed(values))
    if any(size >= larger for size, larger in pairwise(sizes)):
        raise ValueError(f"gallery_sizes: expected ascending numbers, got {short_repr(values)}")
    return sizes


def _thresholds(values: Any, sizes: int) -> tuple[float, ...]:
    thresholds = tuple(number(value, 0) for value in _listed(values, sizes))
    if any(one < larger for one, larger in pairwise(thresholds)):
        raise ValueError(f"thresholds: expected numbers that do not grow with the size, got {short_repr(values)}")
    return thresholds


def _answer(read: dict[str, Any], sizes: int) -> CalibratedDistance:
    slope = number(read["slope"])
    if slope >= 0:
        raise ValueError(f"slope: expected a number below 0, got {slope}")
    return CalibratedDistance(_thresholds(read["thresholds"], sizes), number(read["intercept"]), slope)


def _held_out(read: dict[str, Any] | None, names: Iterable[str]) -> HeldOut | None:
    if read is None:
        return None
    sizes = _sizes(read["gallery_sizes"])
    answers = {}
    for name in names:
        rates = read["answers"][name]
        fpir = tuple(number(value, 0, 1) for value in _listed(rates["fpir"], len(sizes)))
        fnir = tuple(None if value is None else number(value, 0, 1) for value in _listed(rates["fnir"], len(sizes)))
        answers[name] = HeldOutRates(_thresholds(rates["thresholds"], len(sizes)), fpir, fnir, number(rates["nll"], 0))
    return HeldOut(count(read["identities"]), count(read["probes"]), sizes, answers)


def _listed(values: Any, length: int | None = None) -> list[Any]:
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_SIZES or length not in (None, len(values)):
        raise ValueError(f"expected a list of {length or f'1 to {MOST_SIZES}'} numbers, got {short_repr(values)}")
    return values
