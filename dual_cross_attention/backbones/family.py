"""The interface between the method and timm's models: what a backbone family must say of its stem and its blocks.

Notable:
- a family is stateless: one instance serves all models. Modules and parameters stay timm's, so state dicts fit both
  ways;
- a block is run in parts, in the order normalize, project, attend, close, so that the caller computes the attention
  between queries, keys and values of its own choice;
- the positions of tokens that a family encodes in queries and keys (rotary embeddings) are one tensor, which is
  indexed by token. Where the family has none, it is None;
- what a family adds to the scores (relative positions, masks) is the bias of a block;
- attention within windows has the windows in the axis of heads (`windows.py`).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from timm.models import named_apply
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from dual_cross_attention.backbones.drop_path import DropPathMasks
from dual_cross_attention.backbones.fused_attention import attend
from dual_cross_attention.backbones.readout import ReadOut, read_out_of
from dual_cross_attention.backbones.windows import Windows

Part: TypeAlias = nn.Module | nn.Parameter
"""Of a backbone: a module, or a parameter of the backbone itself, such as a class token."""

HEADS = {"head_drop", "head", "head_dist"}
FINAL = ("norm", "fc_norm", "attn_pool")
"""timm's names of the modules of a backbone after its blocks."""


class BackboneFamily(ABC):
    """How the models of one timm family are run in parts.

    Attributes:
        name: as of `dcal backbones --family`.
        timm_modules: timm's modules with models of the family; each model is checked when it is created.
        summary: one line on what the method means here.
        is_windowed: whether blocks attend within windows.
        has_fused_attention: whether attention runs in a fused kernel, which stores no weights.
    """

    name: str
    timm_modules: tuple[str, ...]
    summary: str
    is_windowed: bool = False
    has_fused_attention: bool = True

    # the whole backbone

    @abstractmethod
    def reason_against(self, backbone: nn.Module) -> str | None:
        """Why this backbone cannot be run in parts, to be read after "it does not fit: "; None: it can."""

    @abstractmethod
    def runs(self, block: nn.Module) -> bool:
        """Whether it runs this block, before anything has wrapped it."""

    @abstractmethod
    def embed(self, backbone: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Applies the stem, up to the first block: (B, 3, H, W) → tokens (B, prefix + N, D), and all positions."""

    def token_width(self, backbone: Any) -> int:
        """D of the tokens that `embed` returns."""
        width: int = backbone.embed_dim
        return width

    def read_out(self, backbone: Any) -> ReadOut | None:
        """Where the feature that is classified comes from; None: it has no row of weights over the tokens."""
        return read_out_of(backbone)

    def num_prefix_tokens(self, backbone: Any) -> int:
        """Number of tokens before the patch tokens in all blocks: class, distillation and register tokens."""
        return backbone.num_prefix_tokens

    def blocks(self, backbone: Any) -> Sequence[nn.Module]:
        """The blocks in their order, of all stages: SA and PWCA run through them."""
        return cast(Sequence[nn.Module], backbone.blocks)

    def final_blocks(self, backbone: Any) -> Sequence[nn.Module]:
        """Blocks after `blocks` which the read-out runs, such as class-attention layers."""
        return ()

    # parts that are frozen from below: the stem, then one layer a block, then the rest below the head

    def stem_parts(self, backbone: Any) -> list[Part]:
        """All before the first block."""
        blocks = {id(module) for block in self.blocks(backbone) for module in block.modules()}
        later = {id(part) for part in self.final_parts(backbone)}

        def is_stem(name: str, module: nn.Module) -> bool:
            return name not in HEADS and id(module) not in later and not any(id(m) in blocks for m in module.modules())

        modules = [module for name, module in backbone.named_children() if is_stem(name, module)]
        return [*modules, *(each for each in backbone.parameters(recurse=False) if id(each) not in later)]

    def layer_parts(self, backbone: Any) -> list[list[Part]]:
        """For each block, the block, and what comes between it and the one before."""
        return [[block] for block in self.blocks(backbone)]

    def final_parts(self, backbone: Any) -> list[Part]:
        """All after the last block, without heads."""
        return [part for name in FINAL if (part := getattr(backbone, name, None)) is not None]

    def grid(self, backbone: Any, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patch tokens after the last block, of images of (height, width) pixels."""
        height, width = backbone.patch_embed.dynamic_feat_size(img_size)
        return height, width

    def enter(self, backbone: Any, place: int, tokens: Tensor) -> Tensor:
        """Applies what lies before the block at a place, counted from 0, and after the one below: (B, n, D) tokens →
        (B, n', D'), as the block takes them."""
        return tokens

    def first_on_last_grid(self, backbone: Any) -> int:
        """The place of the first block with the tokens of the last one, by which rollout is computed."""
        return 0

    def positions(self, backbone: Any) -> Tensor | None:
        """All positions at the backbone's input size, as `embed` returns them in evaluation mode."""
        return None

    def positions_of_block(self, positions: Tensor | None, place: int) -> Tensor | None:
        """Those of the block at a place, counted from 0: (prefix + N, …) or (heads, prefix + N, …)."""
        return positions

    def patch_size(self, backbone: Any) -> tuple[int, int]:
        """(height, width) of a patch in pixels: of the image, not of a feature map before the patches."""
        height, width = backbone.patch_embed.patch_size
        return height, width

    # a block

    @abstractmethod
    def heads(self, block: nn.Module) -> tuple[int, int]:
        """Number of heads and their width."""

    def key_shape(self, block: nn.Module, num_tokens: int) -> tuple[int, int, int]:
        """(heads, N, d) of the keys and values that `project` returns of N tokens."""
        heads, head_dim = self.heads(block)
        return heads, num_tokens, head_dim

    def windows(self, block: Any) -> Windows | None:
        """The windows that `project` divides tokens into; None: all tokens attend to all."""
        return None

    def bias(self, block: Any, queries: Tensor | None = None, keys: Tensor | None = None) -> Tensor | None:
        """What is added to the scores before the softmax: (1 or B, heads, n, N); None: nothing.

        Args:
            queries, keys: (B, m) of the tokens that have a query, or a key; None: all. In a block of GLCA only.
        """
        return None

    @abstractmethod
    def project(self, block: nn.Module, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) → query, key, value as they enter the softmax, each (B, heads, N, d).

        In windows of n tokens, each (B, windows · heads, n, d).

        Args:
            normed: of `normalize`.
            positions: of these tokens.
        """

    @abstractmethod
    def project_query(self, block: nn.Module, normed: Tensor, positions: Tensor | None) -> Tensor:
        """The queries alone: (B, n, D) → (B, heads, n, d)."""

    @abstractmethod
    def project_key_value(self, block: nn.Module, normed: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values alone: (B, N, D) → two (B, heads, N, d)."""

    @abstractmethod
    def close(
        self, block: nn.Module, tokens: Tensor, normed: Tensor, attended: Tensor, drop_path: DropPathMasks | None
    ) -> Tensor:
        """Applies what follows the attention: output projection, residual, MLP, residual.

        Args:
            tokens: (B, n, D) the residual stream of the query tokens.
            normed: (B, n, D) of `normalize` (for gated attention).
            attended: (B, n, heads · d) the attention's output, as of `attend`; or (k·B, n, …), k outputs for the same
                tokens.
            drop_path: factors for `attended`'s rows; None: nothing is dropped.

        Returns:
            (B, n, D), or (k·B, n, D).
        """

    def normalize(self, block: Any, tokens: Tensor) -> Tensor:
        """What the projections read: (B, N, D) → (B, N, D)."""
        return block.norm1(tokens)

    def attend(self, block: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attention over keys of the caller's choice, heads merged: see `fused_attention.attend`.

        Args:
            bias: of `bias`, for these queries and keys.
        """
        return attend(query, key, value, block.attn.attn_drop.p if block.attn.training else 0.0, bias)

    def copy_for_glca(self, backbone: Any, block: nn.Module) -> nn.Module:
        """A copy of a block for GLCA, in which each token may attend to all."""
        return copy.deepcopy(block)

    def score_mixing(self, block: nn.Module) -> Tensor | None:
        """(heads, heads) by which talking heads mix the scores of all heads before the softmax; None: they do not."""
        return None

    def weight_mixing(self, block: nn.Module) -> Tensor | None:
        """(heads, heads) by which talking heads mix the attention weights of all heads after the softmax, likewise."""
        return None

    def low_rank_layers(self, block: nn.Module) -> list[nn.Linear]:
        """The linear layers of a block, or of one of `final_blocks`, that LoRA adds to."""
        return [layer for layer in block.modules() if isinstance(layer, nn.Linear)]

    def initialize(self, block: nn.Module) -> None:
        """Initializes a block's weights anew, as timm does when it creates one."""
        named_apply(init_weights_vit_timm, block)


def select_positions(positions: Tensor | None, index: Tensor) -> Tensor | None:
    """Positions of some tokens of each image.

    Args:
        positions: of all tokens, (N, …) or (heads, N, …); None: the family has none.
        index: (B, m) of the tokens.

    Returns:
        (B, 1 or heads, m, …), which broadcasts over (B, heads, m, d).
    """
    if positions is None:
        return None
    if positions.ndim == 2:
        return positions[index].unsqueeze(1)
    return positions[:, index].transpose(0, 1)


def split_heads(projected: Tensor, num_heads: int) -> Tensor:
    """(B, N, heads · d) → (B, heads, N, d)."""
    return projected.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def repeat_rows(tokens: Tensor, rows: int) -> Tensor:
    """Repeats (B, n, D) to (rows, n, D)."""
    batch = tokens.shape[0]  # len() would fix the batch size under torch.export
    return tokens if batch == rows else tokens.repeat(rows // batch, 1, 1)
