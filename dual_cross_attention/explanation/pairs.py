"""Which regions of two images match, and the distance between the images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from dual_cross_attention.devices import autocast
from dual_cross_attention.errors import InputError
from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.explanation.matching import DEFAULT_METHOD, MatchMethod, best_pairs, match_scores
from dual_cross_attention.inference.inputs import image_sources
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.inference.reading import read_batches
from dual_cross_attention.metrics.distances import Distances
from dual_cross_attention.text import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATCHES = 10


class Match(NamedTuple):
    """Two patches that match: their (row, column) in each image's grid, and the score of the pair."""

    first: tuple[int, int]
    second: tuple[int, int]
    score: float


@dataclass(frozen=True)
class PairExplanation:
    """Matching regions of two images.

    Args:
        first, second: the images, with their maps.
        method: "pwca" or "cosine", see `matching.py`.
        scores: (h · w, h · w) float32, of each patch of `first` with each of `second`.
        matches: the best pairs, each patch in one at most, the best first.
        distance: between the features of the two images, each from a pass of its own: it does not come from the
            matches.
        distance_name: "euclidean" or "cosine".
        threshold: distance up to which both are of one identity; None: the model is not calibrated for pairs.
        gallery_size: number of enrolled identities that the threshold is for.
        same: calibrated probability that both are of one identity; None likewise.
    """

    first: Explanation
    second: Explanation
    method: MatchMethod
    scores: np.ndarray
    matches: list[Match]
    distance: float
    distance_name: str
    threshold: float | None = None
    gallery_size: int | None = None
    same: float | None = None

    def figure(self) -> "Figure":
        """Both images with lines between matching patches, and the distance, as a matplotlib figure."""
        from dual_cross_attention.explanation.pair_figure import draw_pair

        return draw_pair(self)


def explain_pair(
    loaded: LoadedModel, first: Any, second: Any, method: MatchMethod = DEFAULT_METHOD, matches: int = MATCHES
) -> PairExplanation:
    """Which regions of two images match.

    Args:
        first, second: a path, a PIL image, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W) each.
        method: "pwca" or "cosine".
        matches: number of pairs of patches.

    Raises:
        InputError: an image that cannot be read, or another method.
    """
    if matches < 1:
        raise InputError(f"matches: expected at least 1, got {matches}")
    explanations = list(loaded.explain([first, second]))
    for each, name in zip(explanations, ("the first image", "the second image"), strict=True):
        if each.error:
            raise InputError(f"{(each.path and escape(each.path)) or name} cannot be read: {each.error}")
    (batch,) = read_batches(image_sources([first, second])[0], loaded.transform, 2, 0, loaded.device)
    images = batch.images.to(loaded.device)
    with autocast(loaded.device, loaded.precision):
        scores = match_scores(loaded.model, images[:1], images[1:], method)[0].cpu().numpy()
    columns = explanations[0].rollout.shape[1]
    found = [
        Match(divmod(one, columns), divmod(other, columns), float(scores[one, other]))
        for one, other in best_pairs(scores, matches).tolist()
    ]
    return PairExplanation(*explanations, method, scores, found, **_distance(loaded, loaded.embed([first, second])))


def _distance(loaded: LoadedModel, features: Tensor) -> dict[str, Any]:
    """Distance, threshold and P(same), as fields of `PairExplanation`. A calibration of re-ID has the last two."""
    name = loaded.config.distance if loaded.task == "reid" else "cosine"
    distance = float(Distances(features[:1], features[1:], name)(slice(1)))
    if name == "euclidean":
        distance = distance**0.5
    found: dict[str, Any] = {"distance": distance, "distance_name": name}
    if loaded.task == "reid" and loaded.calibration is not None:
        size = loaded.calibration.gallery_sizes[0]
        same = float(loaded.calibration.probability_same(distance))
        found |= {"threshold": loaded.calibration.threshold(size), "gallery_size": size, "same": same}
    return found
