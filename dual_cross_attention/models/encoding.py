"""A backbone's stem and blocks over the stack of SA and PWCA: images → tokens, and queries and keys for rollout.

Notable:
- SA and PWCA share all weights, so they run as one stack of 2B rows through the backbone's own blocks;
- in the last block, queries are computed for the prefix tokens only where patch tokens are not read, which makes
  `sa_only` cheaper than timm;
- rollout uses detached queries and keys of the SA rows, so no attention matrix and no graph is kept for it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dual_cross_attention.attention.pairwise import sample_distractor_tokens
from dual_cross_attention.attention.rollout import AttentionLayer
from dual_cross_attention.backbones.drop_path import sample_drop_path
from dual_cross_attention.backbones.readout import ReadOut
from dual_cross_attention.models.attention_trace import AttentionTrace
from dual_cross_attention.models.freezing import FreezableBackbone
from dual_cross_attention.models.glca import LocalQueries, is_scored
from dual_cross_attention.models.side_information import SideInformation
from dual_cross_attention.models.stacked_block import last_block, stacked_block


class EncodedStreams(NamedTuple):
    """What heads and GLCA read of a batch.

    Args:
        sa: (B, prefix + N, D) tokens of SA after the last block; (B, prefix, D) where nothing reads the others.
        pwca: those of PWCA, likewise; None: no PWCA.
        layers: queries and keys of SA in the layers that the choice of the local tokens needs.
        positions: of all blocks, as the family's `embed` returns them.
    """

    sa: Tensor
    pwca: Tensor | None
    layers: list[AttentionLayer]
    positions: Tensor | None

    def first(self, rows: int) -> "EncodedStreams":
        """The first images of the batch alone."""
        pwca = None if self.pwca is None else self.pwca[:rows]
        layers = [layer._replace(query=layer.query[:rows], key=layer.key[:rows]) for layer in self.layers]
        return EncodedStreams(self.sa[:rows], pwca, layers, self.positions)


class EncodingBackbone(FreezableBackbone):
    """The part of `DualCrossAttentionViT` that runs the backbone."""

    read_out: ReadOut
    local_queries: LocalQueries
    side_information: SideInformation | None
    pwca_blocks: int
    clean_distractors: bool
    distractor_tokens: float
    distractor_noise: bool

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self._stacked_block, self._last_block = stacked_block, last_block  # or compiled, or wrapped

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations; also those of a convolutional
        stem, where timm can."""
        self.grad_checkpointing = enable
        stem = self.backbone.patch_embed
        if hasattr(stem, "set_grad_checkpointing"):
            stem.set_grad_checkpointing(enable)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks, one graph for all that differ in weights only; a graph break is an error.

        Args:
            backend: of `torch.compile`.
        """
        # A graph each for the first block and the others, with and without PWCA, training and evaluation, a short last
        # batch: too many for the default, at which a compiled function that may not break would give up.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        self._stacked_block = torch.compile(stacked_block, fullgraph=True, backend=backend)
        self._last_block = torch.compile(last_block, fullgraph=True, backend=backend)

    def wrap_block_functions(self, wrap: Callable[[Callable], Callable]) -> None:
        """Wraps the functions that run a block: FSDP must gather a block's parameters around them, since the block
        module itself is never called."""
        self._stacked_block, self._last_block = wrap(self._stacked_block), wrap(self._last_block)

    def _encode(
        self,
        images: Tensor,
        distractors: Tensor | None,
        with_glca: bool,
        scored: bool,
        trace: AttentionTrace | None = None,
        cameras: Tensor | None = None,
    ) -> EncodedStreams:
        """Applies stem and blocks.

        Args:
            scored: whether queries and keys are kept for the choice of the local tokens.
            trace: takes those of all layers on the last grid, and SA's tokens.
        """
        with self._gradients(0):
            tokens, positions = self.family.embed(self.backbone, images)
        if cameras is not None and self.side_information is not None:
            tokens = self.side_information(tokens, cameras)
        layers: list[AttentionLayer] = []
        prefix = self.family.num_prefix_tokens(self.backbone)
        tokens_of_distractors = None
        if distractors is not None:
            patches = tokens.shape[1] - prefix
            tokens_of_distractors = sample_distractor_tokens(
                len(tokens), prefix, patches, self.distractor_tokens, tokens.device
            )
        blocks = self.family.blocks(self.backbone)
        *stacked, last = blocks
        if self.read_out.reads_patches:
            stacked = [*stacked, last]
        depth = len(blocks)
        both: tuple[Tensor | None, Tensor | None] = (None, None)
        for place, block in enumerate(stacked):
            with self._gradients(place):
                tokens = self.family.enter(self.backbone, place, tokens)
            if trace is not None:
                trace.last_input = tokens
            if place >= depth - self.pwca_blocks:  # else PWCA's stream is SA's
                both = distractors, tokens_of_distractors
            of_block = self.family.positions_of_block(positions, place)
            with self._gradients(place):
                tokens, *of_layer = self._run(self._stacked_block, block, tokens, of_block, *both)
                self._keep(layers, trace, scored, blocks, place, *of_layer)
        if self.read_out.reads_patches:
            sa, pwca = (tokens, None) if distractors is None else tokens.chunk(2)
        else:
            if trace is not None:
                trace.last_input = tokens
            of_block = self.family.positions_of_block(positions, depth - 1)
            whole_sa = with_glca or (trace is not None and trace.with_patch_tokens)
            given = tokens, of_block, distractors, tokens_of_distractors, prefix, whole_sa
            with self._gradients(depth - 1):
                sa, pwca, *of_layer = self._run(self._last_block, last, *given)
                self._keep(layers, trace, scored, blocks, depth - 1, *of_layer)
        if trace is not None:
            trace.tokens, trace.last_positions = sa, of_block
        return EncodedStreams(sa, pwca, layers, positions)

    def _keep(
        self,
        layers: list[AttentionLayer],
        trace: AttentionTrace | None,
        scored: bool,
        blocks: Sequence[nn.Module],
        place: int,
        query: Tensor,
        key: Tensor,
        mixing: Tensor | None,
        bias: Tensor | None = None,
    ) -> None:
        """Adds the queries and keys of the block at a place to `layers` and to the trace, as far as they are needed."""
        is_kept = scored and is_scored(place, len(blocks), self.local_queries)
        if place < self.family.first_on_last_grid(self.backbone) or not (is_kept or trace is not None):
            return
        # In training, autograd holds the projection that query and key are views of, and they cost nothing (a
        # compiled block keeps what its compiler chose). Elsewhere a view alone would hold it, with V and PWCA's rows.
        if self.grad_checkpointing or not torch.is_grad_enabled():
            query, key = (each.clone(memory_format=torch.contiguous_format) for each in (query, key))
        layer = AttentionLayer(query, key, mixing, bias, self.family.windows(blocks[place]))
        if is_kept:
            layers.append(layer)
        if trace is not None:
            trace.layers.append(layer)

    def _run(
        self,
        run_block: Callable,
        block: nn.Module,
        tokens: Tensor,
        positions: Tensor | None,
        distractors: Tensor | None,
        distractor_tokens: Tensor | None,
        *options: Any,
    ) -> tuple[Any, ...]:
        """Runs a block, under gradient checkpointing if enabled."""
        rows = tokens.shape[0] if distractors is None else 2 * len(distractors)
        drop_path = sample_drop_path(block, rows, tokens.device)
        noise = None
        if distractors is not None and self.distractor_noise:
            shape = 2, len(distractors), *self.family.key_shape(block, tokens.shape[1])
            noise = torch.randn(shape, device=tokens.device)
        of_pwca = distractors, drop_path, self.clean_distractors, distractor_tokens, noise
        given = block, self.family, tokens, positions, *of_pwca, *options
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(run_block, *given, use_reentrant=False)
        return run_block(*given)
