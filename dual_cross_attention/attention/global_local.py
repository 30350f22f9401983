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
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dual_cross_attention.backbones.opened_block import (
    DropPathMasks,
    attend,
    attention_of,
    finish_block,
    project_key_value,
    project_query,
)


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
    """

    def __init__(
        self, block: Block, num_prefix_tokens: int, attends: Literal["global", "local_only", "cross"] = "global"
    ):
        super().__init__()
        self.block = block
        self.num_prefix_tokens = num_prefix_tokens
        self.attends = attends

    def query_tokens(self, local: Tensor) -> Tensor:
        """(B, n) local patch indices → (B, m) indices of the tokens whose queries are computed, the prefix first."""
        prefix = torch.arange(self.num_prefix_tokens, device=local.device).expand(local.shape[0], -1)
        return prefix if self.attends == "cross" else torch.cat([prefix, local + self.num_prefix_tokens], dim=1)

    def update(self, tokens: Tensor, local: Tensor, drop_path: DropPathMasks | None = None) -> Tensor:
        """All tokens (B, prefix + N, D) after the block, for a further one; tokens without a query are unchanged."""
        out = self(tokens, local, drop_path)
        return tokens.to(out.dtype).scatter(1, _rows_of(self.query_tokens(local), tokens), out)

    @torch.no_grad()
    def class_attention(self, tokens: Tensor, local: Tensor) -> Tensor:
        """CLS's attention weights, mean over heads: (B, prefix + N), float32; rows sum to 1.

        The weights of tokens that are no keys ("local_only", "cross") are 0. Arguments as of `forward`.
        """
        attention, normed = attention_of(self.block), self.block.norm1(tokens)
        query, (key, _) = project_query(attention, normed[:, :1]), project_key_value(attention, normed)
        with torch.autocast(tokens.device.type, enabled=False):
            scores = query.float() @ key.float().transpose(-2, -1) * attention.scale  # (B, heads, 1, prefix + N)
            if self.attends != "global":
                keys = local + self.num_prefix_tokens if self.attends == "cross" else self.query_tokens(local)
                is_key = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter(1, keys, True)
                scores = scores.masked_fill(~is_key[:, None, None], -torch.inf)
            return scores.softmax(dim=-1).mean(1)[:, 0]

    def forward(self, tokens: Tensor, local: Tensor, drop_path: DropPathMasks | None = None) -> Tensor:
        """(B, prefix + N, D) tokens and (B, n) local patch indices → (B, prefix + n, D), or (B, prefix, D) of "cross".

        Args:
            drop_path: the block's, of `sample_drop_path`; None: nothing is dropped.
        """
        attention, index = attention_of(self.block), _rows_of(self.query_tokens(local), tokens)
        if self.attends != "global":
            own = tokens.gather(1, index)
            normed = normed_context = self.block.norm1(own)
            if self.attends == "cross":
                normed_context = self.block.norm1(tokens.gather(1, _rows_of(local + self.num_prefix_tokens, tokens)))
            query = project_query(attention, normed)
            attended = attend(attention, query, *project_key_value(attention, normed_context))
            return finish_block(self.block, own, normed, attended, drop_path)

        normed = self.block.norm1(tokens)
        query_normed = normed.gather(1, index)
        query = project_query(attention, query_normed)
        attended = attend(attention, query, *project_key_value(attention, normed))
        return finish_block(self.block, tokens.gather(1, index), query_normed, attended, drop_path)


def _rows_of(indices: Tensor, tokens: Tensor) -> Tensor:
    """(B, m) indices of tokens as an index of their whole rows: (B, m, D)."""
    return indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
