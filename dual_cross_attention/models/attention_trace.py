"""What a forward pass gives: logits and features, and for explanations the queries and keys of its layers."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from dual_cross_attention.attention.rollout import AttentionLayer


class EncodedImages(NamedTuple):
    """What heads and GLCA read of images: the backbone's output, before its final norm.

    Args:
        tokens: (B, prefix + N, D) SA's tokens after the last block; without GLCA (B, prefix, D).
        scores: (B, N) of the patch tokens, by which GLCA's local tokens are chosen, float32; None without GLCA, or
            where they are sampled in each pass (`local_queries` "random").
    """

    tokens: Tensor
    scores: Tensor | None


@dataclass
class DualOutput:
    """Result of a forward pass; branches that the ablation or the mode does not have are absent."""

    logits: dict[str, Tensor] = field(default_factory=dict)  # "sa", "glca", "pwca": (B, num_classes)
    features: dict[str, Tensor] = field(default_factory=dict)  # "sa", "glca", "pwca": (B, D)
    # (B, N) CLS's accumulated attention over the patch tokens, or the other scores of `local_queries`: float32, no
    # gradient
    rollout: Tensor | None = None
    local: Tensor | None = None  # (B, n) indices of the local patch tokens, the largest score first


@dataclass
class AttentionTrace:
    """What `DualCrossAttentionViT.trace` keeps of one forward pass.

    Args:
        with_patch_tokens: whether `tokens` has SA's patch tokens also where no branch reads them.
        layers: of SA, those with the tokens of the last one; see `AttentionLayer`. The last layer's query is CLS's
            alone, (B, heads, 1, head_dim), unless the read-out reads the patch tokens.
        start: (B, prefix + N) float32, where rollout starts: weights of a pool, or the class token's rollout through
            class-attention layers; None: CLS.
        last_input: (B, prefix + N, D) the tokens that enter the last block.
        last_positions: their positions in it, where the family has some.
        tokens: (B, prefix + N, D) SA's tokens after the last block, before the norm; (B, prefix, D) without patch
            tokens.
        glca: (B, prefix + N) CLS's attention in GLCA's last block, mean over heads, float32; rows sum to 1. None
            without GLCA, or before it is trained. Where GLCA has a pool of its own, the query tokens' rows, weighted as
            it reads them; rows sum to its weights' sum.
        output: logits, features, scores and local tokens.
    """

    with_patch_tokens: bool = False
    layers: list[AttentionLayer] = field(default_factory=list)
    start: Tensor | None = None
    last_input: Tensor | None = None
    last_positions: Tensor | None = None
    tokens: Tensor | None = None
    glca: Tensor | None = None
    output: DualOutput = field(default_factory=DualOutput)

    @property
    def queries(self) -> list[Tensor]:
        """Of SA, one tensor a layer, each (B, heads, prefix + N, head_dim); see `layers`."""
        return [layer.query for layer in self.layers]

    @property
    def keys(self) -> list[Tensor]:
        """Likewise, all tokens in every layer."""
        return [layer.key for layer in self.layers]

    @property
    def mixings(self) -> list[Tensor | None]:
        """(heads, heads) of each layer, of talking heads; see `layers`."""
        return [layer.mixing for layer in self.layers]
