"""An exported ONNX graph behind the interface of `DualCrossAttentionViT` at inference, run by ONNX Runtime."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dual_cross_attention.errors import InputError
from dual_cross_attention.models.attention_trace import DualOutput

INPUT = "images"
"""Name of the graph's input: (batch, 3, H, W) float32, normalized."""


def output_names(task: str, branches: list[str], has_local: bool) -> list[str]:
    """Names of the outputs of an exported graph, in order.

    "probabilities" (B, classes), the mean of the branches' softmax, of classifiers; "embedding" (B, D · branches), as
    `LoadedModel.embed` gives it; "logits_BRANCH" (B, classes), of classifiers; "feature_BRANCH" (B, D), after the neck
    where the settings say so, not scaled; and where the graph has GLCA with local tokens, "rollout" (B, N), the scores
    of the patch tokens, and "local" (B, n) int64, indices of the local ones.

    Args:
        task: "fgvc" or "reid".
        branches: those of the graph.
        has_local: whether the graph chooses local tokens.
    """
    is_classifier = task == "fgvc"
    return [
        *(["probabilities"] if is_classifier else []),
        "embedding",
        *(f"logits_{branch}" for branch in branches if is_classifier),
        *(f"feature_{branch}" for branch in branches),
        *(["rollout", "local"] if has_local else []),
    ]


AT_ONCE = 8
"""Images of one run of the graph. It keeps the attention weights of all layers for rollout, (layers, images, heads,
tokens, tokens), and larger batches are no faster on a CPU."""


class OnnxModel(nn.Module):
    """Runs an exported graph on the CPU. Made by `read_onnx`.

    Args:
        session: an `onnxruntime.InferenceSession`.
        branches: the branches of the graph, "sa" first; all of them predict.
        num_classes: width of the logits.
        embed_dim: D of a branch's feature.
        dtype: of the weights: "fp32", "fp16" or "int8". Inputs and outputs are float32.
        digest: 32 hex digits over the bytes of the graph.
        source_digest: `digest_weights` of the model that it was exported from, as the file says; None of fp16 and int8,
            which are models of their own.
    """

    has_glca = has_pwca = False  # of training
    side_information = None  # the graph has none: all cameras are unknown

    def __init__(
        self,
        session: Any,
        branches: list[str],
        num_classes: int,
        embed_dim: int,
        dtype: str,
        digest: str,
        source_digest: str | None = None,
    ):
        super().__init__()
        self.session, self.dtype, self.digest, self.source_digest = session, dtype, digest, source_digest
        self.branches = self.test_branches = self.predicting_branches = branches
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.outputs = [output.name for output in session.get_outputs()]

    def check_hardware(self, device: str, precision: str | None) -> None:
        """Raises InputError unless device is "auto" or "cpu", and precision None, "auto" or that of the weights."""
        if device not in ("auto", "cpu") or precision not in (None, "auto", self.dtype):
            raise InputError(
                f"an exported .onnx model runs on the CPU in {self.dtype}, got device {device} and precision "
                f"{precision}: take the model that it was exported from"
            )

    def run(self, images: Tensor) -> dict[str, np.ndarray]:
        """All outputs of the graph by name, of images (B, 3, H, W) float32, normalized; see `output_names`.

        Raises:
            InputError: ONNX Runtime fails, such as for images of another size.
        """
        parts = [self._run(part) for part in images.split(AT_ONCE)]
        return (
            parts[0] if len(parts) == 1 else {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
        )

    def _run(self, images: Tensor) -> dict[str, np.ndarray]:
        try:
            found = self.session.run(None, {INPUT: images.detach().cpu().float().contiguous().numpy()})
        except Exception as error:  # of ONNX Runtime's own types, which have no common base
            raise InputError(f"ONNX Runtime: {' '.join(str(error).split()):.300}") from error
        return dict(zip(self.outputs, found, strict=True))

    def forward(self, images: Tensor, *of_training: None) -> DualOutput:
        """Logits, features, scores and local tokens; the logits of a re-identification model are absent.

        Args:
            of_training: what else `DualCrossAttentionViT.forward` takes; None in an evaluation.
        """
        found = {name: torch.from_numpy(value) for name, value in self.run(images).items()}
        logits, features = (
            {branch: found[f"{kind}_{branch}"] for branch in self.branches if f"{kind}_{branch}" in found}
            for kind in ("logits", "feature")
        )
        return DualOutput(logits, features, found.get("rollout"), found.get("local"))

    def predict_logits(self, images: Tensor, branch: str | None = None) -> dict[str, Tensor]:
        """As `DualCrossAttentionViT.predict_logits`."""
        logits = self(images).logits
        return {name: logits[name] for name in ([branch] if branch else self.branches)}

    def embed(self, images: Tensor, branch: str | None = None) -> Tensor:
        """As `DualCrossAttentionViT.embed`, but after the necks where the settings of the model say so."""
        features = self(images).features
        return torch.cat([features[name] for name in ([branch] if branch else self.branches)], dim=-1)

    def through_necks(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features as they are: those of the graph are after the necks where the settings say so."""
        return features
