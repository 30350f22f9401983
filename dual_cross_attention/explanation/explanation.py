"""What a model attends to in one image."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dual_cross_attention.explanation.maps import MapName, combined_map, default_map
from dual_cross_attention.inference.prediction import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Explanation:
    """Attention maps of an image over a grid of h × w patches, and the predictions of the same forward pass.

    Args:
        path: the file as it was named; None for an image in memory.
        rollout: (h, w) float32. CLS's row of attention rollout through all layers of SA: how much of each patch
            reaches the class token. Prefix tokens are left out, so the sum is below 1.
        layers: (L, h, w) float32. CLS's attention in each layer of SA, mean over heads, the first layer first; not
            accumulated.
        local: (h, w) bool. GLCA's local tokens, the top R % of rollout (or of the score that `local_queries` names);
            None without GLCA, or before it is trained. With one GLCA block and keys of all tokens they do not change
            the prediction.
        glca: (h, w) float32. CLS's attention in GLCA's last block, mean over heads; None likewise.
        gradient: (h, w) float32. Gradient × rollout of SA's logit of the predicted class, see `gradient_rollout.py`;
            None unless asked for.
        predictions: by answer, the ones of all branches first: "together" (SA and GLCA, where there are both), "sa",
            "glca"; empty for a re-identification model. Calibrated if the model is.
        image: (H, W, 3) uint8, the region that the model saw, with its aspect ratio, at the resolution of figures;
            None where it was not kept.
        local_queries: how the model chose the local tokens, see `DualCrossAttentionViT`.
        crop: share of the resized image's height and width that the model saw, (1.0, 1.0) if nothing was cropped.
        keep_aspect: whether the image was cropped to the aspect ratio of the model's input before it was resized.
        is_calibrated: whether probabilities are calibrated.
        model_name: for figures.
        error: why the image cannot be read; all else but `path` is then None or empty.
    """

    path: str | None
    rollout: np.ndarray | None = None
    layers: np.ndarray | None = None
    local: np.ndarray | None = None
    glca: np.ndarray | None = None
    gradient: np.ndarray | None = None
    predictions: dict[str, Prediction] = field(default_factory=dict)
    image: np.ndarray | None = None
    local_queries: str = "rollout"
    crop: tuple[float, float] = (1.0, 1.0)
    keep_aspect: bool = False
    is_calibrated: bool = False
    model_name: str = ""
    error: str | None = None

    def map(self, name: MapName | None = None) -> np.ndarray:
        """(h, w) of "rollout", "glca", "product" (of both) or "gradient"; None: of `default_map`.

        Raises:
            InputError: a map that this model does not have, or gradient × rollout where it was not asked for.
        """
        if name == "gradient" and self.gradient is not None:
            return self.gradient
        return combined_map(name or self.default_map, self.rollout, self.glca)

    @property
    def crop_words(self) -> str:
        """Which region of the image the model saw; empty if all of it."""
        if self.crop == (1.0, 1.0):
            return "the center crop with the aspect ratio of the model's input" if self.keep_aspect else ""
        height, width = (round(100 * share) for share in self.crop)
        of_ratio = " of its center with the aspect ratio of the model's input" if self.keep_aspect else ""
        return f"the center crop, {height} % of the height and {width} % of the width{of_ratio}"

    @property
    def default_map(self) -> MapName:
        """See `maps.default_map`."""
        return default_map(self.glca is not None)

    def figure(self, show_layers: bool = False) -> "Figure":
        """Image, rollout with the local tokens outlined, GLCA's attention, their product, and predictions.

        Args:
            show_layers: one more row with `layers`.

        Returns:
            A matplotlib figure: `figure().savefig("a.png")`.

        Raises:
            InputError: the image could not be read, or was not kept.
        """
        from dual_cross_attention.explanation.figures import draw_explanations

        return draw_explanations([self], show_layers)
