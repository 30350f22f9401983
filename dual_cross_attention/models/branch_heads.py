"""From the tokens after the last block to logits and features: the norm and head of SA and PWCA, and GLCA."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dual_cross_attention.attention.global_local import select_local
from dual_cross_attention.attention.rollout import AttentionLayer
from dual_cross_attention.backbones.drop_path import sample_drop_path
from dual_cross_attention.models.attention_trace import AttentionTrace, DualOutput
from dual_cross_attention.models.branch_inference import BranchInference
from dual_cross_attention.models.encoding import EncodedStreams
from dual_cross_attention.models.glca import score_patches


class BranchHeads(BranchInference):
    """The part of `DualCrossAttentionViT` that reads the backbone's tokens."""

    local_ratio: float
    glca_norm: nn.Module

    def _score_patches(self, tokens: Tensor, layers: list[AttentionLayer], start: Tensor | None) -> Tensor:
        return score_patches(tokens, layers, self.num_prefix_tokens, self.local_queries, self.training, start)

    def _decide(
        self,
        encoded: EncodedStreams,
        score: Callable[[Tensor | None], Tensor] | None,
        with_glca: bool,
        trace: AttentionTrace | None = None,
    ) -> DualOutput:
        """Logits and features from the tokens after the last block.

        Args:
            score: of the row that rollout starts in (None: CLS) returns (B, N), scores of the patch tokens for the
                choice of the local ones; None: none are local.
        """
        sa_tokens, pwca_tokens, _, positions = encoded
        prefix, rows, device = self.num_prefix_tokens, sa_tokens.shape[0], sa_tokens.device
        sa_read = sa_tokens if self.read_out.reads_patches else sa_tokens[:, :prefix]
        read = sa_read if pwca_tokens is None else torch.cat([sa_read, pwca_tokens])
        normed = self.read_out.normalize(self.backbone, read)
        both = self.read_out.feature(self.backbone, normed)
        streams = 1 if pwca_tokens is None else 2
        features = dict(zip(("sa", "pwca"), _streams(both, streams), strict=False))
        out = DualOutput(self._classify(normed, both, features), features)
        start = None
        if (score is not None or trace is not None) and self.read_out.reads_patches:
            of_sa = _streams(normed, streams)[0].detach()
            start = self.read_out.start_row(self.backbone, sa_tokens.detach(), of_sa)
        if trace is not None:
            trace.start = start
        if with_glca:
            local = torch.zeros(rows, 0, dtype=torch.int64, device=device)
            if score is not None:
                out.rollout = score(start)
                out.local = local = select_local(out.rollout, self.local_ratio)
            out.features["glca"] = self._glca_feature(sa_tokens, local, positions, trace)
            out.logits["glca"] = self.glca_head(self.read_out.drop(self.backbone, out.features["glca"]))
        return out

    def _classify(self, normed: Tensor, both: Tensor, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits of SA and, where it is there, PWCA.

        Args:
            normed: the stack of their tokens after the norm, as far as the feature depends on them.
            both: the stack of their features.
        """
        if self.has_necks:
            return {name: self.sa_head(feature, passing=name == "pwca") for name, feature in features.items()}
        logits = self.read_out.logits(self.backbone, normed, both)
        return dict(zip(features, _streams(logits, len(features)), strict=True))

    def _glca_feature(
        self, tokens: Tensor, local: Tensor, positions: Tensor | None, trace: AttentionTrace | None
    ) -> Tensor:
        """SA's tokens (B, prefix + N, D) and local patch indices (B, n) → GLCA's feature (B, D)."""
        *earlier, last = self.glca_blocks
        # Positions are those of the backbone's last M blocks; where it has fewer, of its first.
        first = max(0, len(self.family.blocks(self.backbone)) - len(self.glca_blocks))
        of_block = self.family.positions_of_block(positions, first)
        for place, glca in enumerate(earlier, start=first + 1):
            drop_path = sample_drop_path(glca.block, tokens.shape[0], tokens.device)
            tokens = glca.update(tokens, local, drop_path, of_block)
            of_block = self.family.positions_of_block(positions, place)
        drop_path = sample_drop_path(last.block, tokens.shape[0], tokens.device)
        out = last(tokens, local, drop_path, of_block)
        if trace is not None:
            weights = None if self.glca_pool is None else self.glca_pool.row(out, self.glca_norm)
            trace.glca = last.class_attention(tokens, local, of_block, weights)
        return self.glca_norm(out[:, 0]) if self.glca_pool is None else self.glca_pool(out, self.glca_norm)


def _streams(stacked: Tensor, streams: int) -> Sequence[Tensor]:
    """The rows of each stream of a stack. One stream is not split: `torch.export` would fix the batch size."""
    return [stacked] if streams == 1 else stacked.chunk(streams)
