"""Global-local cross-attention (GLCA): the tokens that matter most ask all tokens once more.

Notable:
- one ordinary Transformer block with weights of its own; keys and values come from all tokens, while query, output
  projection and MLP are computed for the prefix (CLS and its like) and the local tokens only. That is what the
  paper's +9 % parameters and +2 % FLOPs pin down;
- CLS is among the queries, since its output is what gets classified.
"""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dual_cross_attention.backbones.opened_block import (
    DropPathMasks,
    attend,
    finish_block,
    project_key_value,
    project_query,
)


def select_local(rollout: Tensor, ratio: float) -> Tensor:
    """The R % of patch tokens that CLS has gathered most from.

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
        num_prefix_tokens: tokens before the patches; they always ask.
    """

    def __init__(self, block: Block, num_prefix_tokens: int):
        super().__init__()
        self.block = block
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, tokens: Tensor, local: Tensor, drop_path: DropPathMasks | None = None) -> Tensor:
        """(B, prefix + N, D) tokens and (B, n) local patch indices → (B, prefix + n, D).

        Args:
            drop_path: the block's, of `draw_drop_path`; None: nothing is dropped.
        """
        prefix = torch.arange(self.num_prefix_tokens, device=local.device).expand(local.shape[0], -1)
        asking = torch.cat([prefix, local + self.num_prefix_tokens], dim=1)  # (B, prefix + n)
        index = asking.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])

        normed = self.block.norm1(tokens)
        normed_asking = normed.gather(1, index)
        query = project_query(self.block.attn, normed_asking)
        attended = attend(self.block.attn, query, *project_key_value(self.block.attn, normed))
        return finish_block(self.block, tokens.gather(1, index), normed_asking, attended, drop_path)
