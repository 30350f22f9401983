"""Global-local cross-attention (GLCA): the class token and the local tokens attend to all tokens in one more block.

Notable:
- one Transformer block with its own weights; keys and values come from all tokens, while query, output projection and
  MLP are computed for the prefix tokens (CLS, distillation, registers) and the local tokens only. This reading follows
  from the paper's +9 % parameters and +2 % FLOPs;
- CLS is among the queries, since its output is classified;
- with one block, the choice of local tokens does not change the logits: queries do not attend to each other, and keys
  and values come from all tokens. It matters with two or more blocks, where later keys and values include the updated
  local tokens, and where keys and values come from local tokens only ("local_only", "cross").
"""

from typing import Literal

import torch
from torch import Tensor, nn

from dual_cross_attention.attention.rollout import row_times_attention
from dual_cross_attention.backbones.drop_path import DropPathMasks
from dual_cross_attention.backbones.family import BackboneFamily, select_positions
from dual_cross_attention.backbones.registry import family_of_block


def select_local(rollout: Tensor, ratio: float) -> Tensor:
    """Selects the R·N patch tokens with the largest rollout.

    Source: DCAL (arXiv 2205.02151), section 3.2.

    Args:
        rollout: (B, N) accumulated attention over the patch tokens.
        ratio: R, in (0, 1].

    Returns:
        (B, n) indices into the patch tokens, the largest first; n = R·N rounded, at least 1.
    """
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"expected a local ratio R in (0, 1], got {ratio}")
    return rollout.topk(max(1, round(ratio * rollout.shape[-1])), dim=-1).indices


class GlobalLocalBlock(nn.Module):
    """softmax(Qˡ Kᵍᵀ/√d) Vᵍ and the rest of a Transformer block, for prefix and local tokens.

    Args:
        block: a timm block whose weights this branch owns.
        num_prefix_tokens: tokens before the patches; their queries are always computed.
        attends: "global": prefix and local tokens attend to all tokens; "local_only": to prefix and local tokens only;
            "cross": the prefix alone attends, to the local tokens only (as CLS does in CrossViT, arXiv 2103.14899).
        family: of the block; None: the one that runs it.
    """

    def __init__(
        self,
        block: nn.Module,
        num_prefix_tokens: int,
        attends: Literal["global", "local_only", "cross"] = "global",
        family: BackboneFamily | None = None,
    ):
        super().__init__()
        self.block = block
        self.num_prefix_tokens = num_prefix_tokens
        self.attends = attends
        self.family = family_of_block(block) if family is None else family

    def query_tokens(self, local: Tensor) -> Tensor:
        """(B, n) local patch indices → (B, m) indices of the tokens whose queries are computed, the prefix first."""
        prefix = torch.arange(self.num_prefix_tokens, device=local.device).expand(local.shape[0], -1)
        return prefix if self.attends == "cross" else torch.cat([prefix, local + self.num_prefix_tokens], dim=1)

    def key_tokens(self, local: Tensor) -> Tensor | None:
        """(B, n) local patch indices → (B, k) indices of the tokens that are keys and values; None: all tokens."""
        if self.attends == "global":
            return None
        return local + self.num_prefix_tokens if self.attends == "cross" else self.query_tokens(local)

    def update(
        self, tokens: Tensor, local: Tensor, drop_path: DropPathMasks | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """All tokens (B, prefix + N, D) after the block, for a further one; tokens without a query are unchanged."""
        out = self(tokens, local, drop_path, positions)
        return tokens.to(out.dtype).scatter(1, _rows_of(self.query_tokens(local), tokens), out)

    @torch.no_grad()
    def class_attention(
        self, tokens: Tensor, local: Tensor, positions: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """CLS's attention weights, mean over heads: (B, prefix + N), float32; rows sum to 1.

        The weights of tokens that are no keys ("local_only", "cross") are 0. Arguments as of `forward`.

        Args:
            weights: (B, m) of the query tokens' rows, where their weighted sum takes the place of CLS's row.
        """
        query, key, *_ = self._project(tokens, local, positions)
        keys = self.key_tokens(local)
        bias = self.family.bias(self.block, self.query_tokens(local), keys)
        if weights is None:
            query, weights = query[:, :, :1], torch.ones(tokens.shape[0], 1, device=tokens.device)
            bias = None if bias is None else bias[:, :, :1]
        with torch.autocast(tokens.device.type, enabled=False):
            mixing = self.family.score_mixing(self.block)
            row = row_times_attention(weights.float(), query, key, mixing=mixing, bias=bias)
        return row if keys is None else row.new_zeros(tokens.shape[:2]).scatter(1, keys, row)

    def forward(
        self, tokens: Tensor, local: Tensor, drop_path: DropPathMasks | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """(B, prefix + N, D) tokens and (B, n) local patch indices → (B, prefix + n, D), or (B, prefix, D) of "cross".

        Args:
            drop_path: the block's, of `sample_drop_path`; None: nothing is dropped.
            positions: of all tokens, as the family's `positions_of_block` gives them; None: the family has none.
        """
        query, key, value, normed = self._project(tokens, local, positions)
        queried = self.query_tokens(local)
        bias = self.family.bias(self.block, queried, self.key_tokens(local))
        attended = self.family.attend(self.block, query, key, value, bias)
        own = tokens.gather(1, _rows_of(queried, tokens))
        return self.family.close(self.block, own, normed, attended, drop_path)

    def _project(
        self, tokens: Tensor, local: Tensor, positions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries of the query tokens, keys and values of the key tokens, and the query tokens after the norm."""
        family, block, queried, keys = self.family, self.block, self.query_tokens(local), self.key_tokens(local)
        if keys is None:
            read = family.normalize(block, tokens)
            normed = read.gather(1, _rows_of(queried, tokens))
        else:
            normed = family.normalize(block, tokens.gather(1, _rows_of(queried, tokens)))
            read = normed
            if self.attends == "cross":
                read = family.normalize(block, tokens.gather(1, _rows_of(keys, tokens)))
        query = family.project_query(block, normed, select_positions(positions, queried))
        read_positions = positions if keys is None else select_positions(positions, keys)
        key, value = family.project_key_value(block, read, read_positions)
        return query, key, value, normed


def _rows_of(indices: Tensor, tokens: Tensor) -> Tensor:
    """(B, m) indices of tokens as an index of their whole rows: (B, m, D)."""
    return indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
