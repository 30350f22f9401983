"""DualCrossAttentionViT: one timm backbone, one forward pass, three branches.

Notable:
- SA and PWCA share all weights, so they run as one stack of 2B rows through the backbone's own blocks;
- in the last block, queries are computed for the prefix tokens only where patch tokens are not read, which makes
  `sa_only` cheaper than timm;
- rollout uses detached queries and keys of the SA rows, so no attention matrix and no graph is kept for it;
- GLCA is one more block (or M) with its own weights, norm and head, on few query tokens;
- PWCA exists in training only. `sa_only` is timm's model with its head;
- for re-identification, a BN neck and a bias-free classifier replace timm's head;
- what a backbone's stem and blocks do, and where its feature comes from, is said by its family and read-out
  (`backbones/`): nothing here depends on one.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dual_cross_attention.attention.global_local import GlobalLocalBlock, select_local
from dual_cross_attention.attention.pairwise import sample_distractor_tokens, sample_distractors
from dual_cross_attention.attention.rollout import AttentionLayer
from dual_cross_attention.backbones.drop_path import sample_drop_path
from dual_cross_attention.backbones.registry import open_backbone
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.attention_trace import AttentionTrace, DualOutput, EncodedImages
from dual_cross_attention.models.branch_inference import BranchInference
from dual_cross_attention.models.freezing import FreezableBackbone
from dual_cross_attention.models.glca import (
    GLCA_INITS,
    LOCAL_QUERIES,
    LocalQueries,
    is_scored,
    make_glca_blocks,
    score_patches,
)
from dual_cross_attention.models.neck import NeckClassifier
from dual_cross_attention.models.side_information import UNKNOWN, SideInformation
from dual_cross_attention.models.stacked_block import last_block, stacked_block
from dual_cross_attention.weights.pixel_stats import PixelStats

ABLATIONS = ("full", "sa_only", "sa_glca", "sa_pwca")

Ablation = Literal["full", "sa_only", "sa_glca", "sa_pwca"]


class DualCrossAttentionViT(FreezableBackbone, BranchInference):
    """Dual Cross-Attention Learning over a timm backbone (arXiv 2205.02151). Made by `create_model`.

    Args:
        backbone: a timm model of one of the families in `backbones/`, with a head unless there are `neck_classes`.
        ablation: which branches there are: "full" is SA + GLCA + PWCA.
        local_ratio: R, the share of patch tokens that are local, in (0, 1].
        glca_init: "random", or "last_block": GLCA's M blocks and norm start as copies of the backbone's last ones.
        distractor_stream: where PWCA's distractor takes its keys and values from: its "pwca" or its "sa" rows.
        neck_classes: None: the backbone's head classifies; a number of identities: a `NeckClassifier` for SA and PWCA,
            and another for GLCA.
        pwca_blocks: T, the last blocks in which PWCA differs from SA; below, both are one. None: all blocks.
        distractor_tokens: share of the distractor's patch tokens, in [0, 1], that are keys and values of PWCA, sampled
            in every step; its prefix tokens always are.
        distractor_noise: PWCA's second keys and values are standard Gaussian noise, sampled in every step and block, in
            place of those of a second image.
        local_queries: one of `LOCAL_QUERIES`. Local are the patch tokens with the largest rollout; with "random" any;
            with "penultimate" those that CLS attends to most in the second to last block. They attend to all tokens;
            with "local_only" to themselves and the prefix; with "cross" the prefix alone attends, to them.
        glca_blocks: M, GLCA's blocks in a row, each with its own weights. Tokens without a query pass a block as they
            are, so with R = 1 they are M ordinary blocks.

        cameras: number of cameras with an embedding, see `SideInformation`; 0: there is none.
        camera_scale: λ of that.

    Attributes:
        glca_is_trained: False before `glca_start` is reached in training: `predict` and `embed` then use SA only,
            unless `branch` is given.
        family, read_out: of the backbone; see `backbones/`.

    Raises:
        InputError: a backbone of no family, or an argument that does not fit it.
    """

    sa_head: NeckClassifier
    glca_block: GlobalLocalBlock
    glca_norm: nn.Module
    glca_head: nn.Module

    def __init__(
        self,
        backbone: Any,
        ablation: Ablation = "full",
        local_ratio: float = 0.1,
        glca_init: Literal["random", "last_block"] = "last_block",
        distractor_stream: Literal["pwca", "sa"] = "pwca",
        neck_classes: int | None = None,
        pwca_blocks: int | None = None,
        distractor_tokens: float = 1.0,
        local_queries: LocalQueries = "rollout",
        glca_blocks: int = 1,
        distractor_noise: bool = False,
        cameras: int = 0,
        camera_scale: float = 3.0,
    ):
        super().__init__()
        for name, value, known in (
            ("ablation", ablation, ABLATIONS),
            ("glca_init", glca_init, GLCA_INITS),
            ("distractor_stream", distractor_stream, ("pwca", "sa")),
            ("local_queries", local_queries, LOCAL_QUERIES),
        ):
            if value not in known:
                raise InputError(f"unknown {name} '{value}': there are {', '.join(known)}")
        if not 0.0 < local_ratio <= 1.0:
            raise InputError(f"local_ratio is the share R of patch tokens that are local, in (0, 1]; got {local_ratio}")
        self.family, self.read_out = open_backbone(backbone, name_of(backbone))
        blocks = self.family.blocks(backbone)
        depth = len(blocks)
        if pwca_blocks is not None and not 1 <= pwca_blocks <= depth:
            raise InputError(
                f"pwca_blocks: expected a number of the backbone's blocks, from 1 to {depth}; got {pwca_blocks}"
            )
        if not 0.0 <= distractor_tokens <= 1.0:
            raise InputError(
                f"distractor_tokens: expected a share of the patch tokens, in [0, 1]; got {distractor_tokens}"
            )
        if distractor_tokens != 1.0 and self.family.is_windowed:
            raise InputError(
                f"distractor_tokens: expected 1, all tokens, of '{name_of(backbone)}', whose windows are paired as a "
                f"whole; got {distractor_tokens}"
            )
        if local_queries == "cross" and self.read_out.reads_patches:
            raise InputError(
                "local_queries cross: expected a backbone with a class token in its blocks, got one that classifies by "
                f"{self.read_out.name} (global_pool {backbone.global_pool!r})"
            )
        self.backbone = backbone
        self.ablation = ablation
        self.local_ratio = local_ratio
        self.clean_distractors = distractor_stream == "sa"
        self.pwca_blocks = depth if pwca_blocks is None else pwca_blocks
        self.distractor_tokens = distractor_tokens
        self.distractor_noise = distractor_noise
        self.local_queries = local_queries
        self.has_glca = ablation in ("full", "sa_glca")
        self.has_pwca = ablation in ("full", "sa_pwca")
        self.glca_is_trained = True
        self.grad_checkpointing = False
        self.pretrained_stats: PixelStats | None = None  # of the pixels, as the weights' file names them
        self._stacked_block, self._last_block = stacked_block, last_block  # or compiled, see `compile_blocks`
        self.side_information: SideInformation | None = None
        if cameras:
            self.side_information = SideInformation(cameras, self.family.token_width(backbone), camera_scale)
        self.has_necks = neck_classes is not None
        if neck_classes is not None:
            self.sa_head = NeckClassifier(self.embed_dim, neck_classes)

        if self.has_glca:
            norm = copy.deepcopy(backbone.norm)
            if glca_init == "random" and hasattr(norm, "reset_parameters"):
                norm.reset_parameters()
            first, *more = make_glca_blocks(self.family, backbone, glca_init, local_queries, glca_blocks)
            self.glca_block = first
            if more:
                self.more_glca_blocks = nn.ModuleList(more)
            self.glca_norm = norm
            self.glca_pool = self.read_out.make_pool(backbone, glca_init)
            if neck_classes is not None:
                self.glca_head = NeckClassifier(self.embed_dim, neck_classes)
            else:
                self.glca_head = copy.deepcopy(self.read_out.classifier(backbone))
                init_weights_vit_timm(self.glca_head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations; also those of a convolutional
        stem, where timm can."""
        self.grad_checkpointing = enable
        stem = self.backbone.patch_embed
        if hasattr(stem, "set_grad_checkpointing"):
            stem.set_grad_checkpointing(enable)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks, one graph for all that differ in weights only; a graph break is an error.

        Everything else stays eager: the stem, rollout, the choice of local tokens, the heads.

        Args:
            backend: of `torch.compile`.
        """
        # A graph each for the first block and the others, with and without PWCA, training and evaluation, a short last
        # batch: too many for the default, at which a compiled function that may not break would give up.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        self._stacked_block = torch.compile(stacked_block, fullgraph=True, backend=backend)
        self._last_block = torch.compile(last_block, fullgraph=True, backend=backend)
        for block in self.glca_blocks:
            block.compile(fullgraph=True, backend=backend)

    def wrap_block_functions(self, wrap: Callable[[Callable], Callable]) -> None:
        """Wraps the functions that run a block: FSDP must gather a block's parameters around them, since the block
        module itself is never called."""
        self._stacked_block, self._last_block = wrap(self._stacked_block), wrap(self._last_block)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, beside all vectors: embeddings, also those of GLCA."""
        of_backbone = tuple(f".{name}" for name in self.backbone.no_weight_decay())
        names = {
            name
            for name, _ in self.named_parameters()
            if ".block." in name and any(each.endswith(f".{name.partition('.block.')[2]}") for each in of_backbone)
        } | {f"backbone{name}" for name in of_backbone}
        if self.side_information is not None:
            names.add("side_information.embedding")
        if self.has_glca and self.glca_pool is not None:
            names |= {f"glca_pool.{name}" for name in self.glca_pool.no_weight_decay()}
        return names

    def forward(
        self,
        images: Tensor,
        distractors: Tensor | None = None,
        branches: Collection[str] | None = None,
        distractor_images: Tensor | None = None,
        cameras: Tensor | None = None,
    ) -> DualOutput:
        """(B, 3, H, W) normalized images → logits and features of every branch.

        Args:
            distractors: (B,) the index of each image's distractor; None samples a random derangement.
            branches: branches to compute, including "sa"; None: all of the model.
            distractor_images: (B, 3, H, W) normalized, the distractor of each image where it is not in the batch; each
                pair distracts each other, and the distractors have no output. They take as much time and memory as the
                images. `distractors` is not used then.
            cameras: (B,) int64, the camera of each image, or `UNKNOWN`, of a model with an embedding of cameras; None:
                all are unknown. Distractor images are of unknown cameras.

        Raises:
            InputError: training with PWCA on a batch of one, where the batch has the distractors; distractor images of
                another shape; branches that the model does not have.
        """
        branches = self.branches if branches is None else branches
        if "sa" not in branches or not set(branches) <= set(self.branches):
            raise InputError(
                f"branches: expected 'sa' and any of {', '.join(self.branches)}, got {', '.join(branches)}"
            )
        if not (self.training and "pwca" in branches):
            distractors = distractor_images = None
        elif distractor_images is not None:
            if distractor_images.shape != images.shape:
                raise InputError(
                    f"distractor_images: expected one per image, {tuple(images.shape)}, got "
                    f"{tuple(distractor_images.shape)}"
                )
            distractors = torch.arange(2 * len(images), device=images.device).roll(len(images))
        elif self.distractor_noise:
            distractors = torch.arange(len(images), device=images.device)
        elif distractors is None:
            distractors = sample_distractors(images.shape[0], images.device)
        if cameras is not None and self.side_information is None:
            raise InputError("cameras: this model has no side information embedding: leave them out")
        return self._forward(
            images, distractors, "glca" in branches, distractor_images=distractor_images, cameras=cameras
        )

    def _forward(
        self,
        images: Tensor,
        distractors: Tensor | None,
        with_glca: bool,
        choose_local: bool = True,
        distractor_images: Tensor | None = None,
        trace: AttentionTrace | None = None,
        cameras: Tensor | None = None,
    ) -> DualOutput:
        scored = with_glca and choose_local
        encoded = images if distractor_images is None else torch.cat([images, distractor_images])
        if cameras is not None and distractor_images is not None:
            cameras = F.pad(cameras, (0, len(distractor_images)), value=UNKNOWN)
        sa_tokens, pwca_tokens, layers, positions = self._encode(
            encoded, distractors, with_glca, scored, trace, cameras
        )
        if pwca_tokens is not None and distractor_images is not None:  # these have no output
            sa_tokens, pwca_tokens = sa_tokens[: len(images)], pwca_tokens[: len(images)]
            layers = [each._replace(query=each.query[: len(images)], key=each.key[: len(images)]) for each in layers]
        score = partial(self._score_patches, sa_tokens, layers) if scored else None
        return self._decide(sa_tokens, pwca_tokens, positions, score, with_glca, trace)

    def _score_patches(self, tokens: Tensor, layers: list[AttentionLayer], start: Tensor | None) -> Tensor:
        return score_patches(tokens, layers, self.num_prefix_tokens, self.local_queries, self.training, start)

    @torch.no_grad()
    def encode(self, images: Tensor) -> EncodedImages:
        """What heads and GLCA read of images, for a frozen backbone: (B, 3, H, W) normalized → `EncodedImages`."""
        scored = self.has_glca and self.local_queries != "random"
        tokens, _, layers, _ = self._encode(images, None, self.has_glca, scored)
        if not scored:
            return EncodedImages(tokens, None)
        start = self.read_out.start_row(self.backbone, tokens, self.read_out.normalize(self.backbone, tokens))
        return EncodedImages(tokens, self._score_patches(tokens, layers, start))

    def forward_encoded(self, encoded: EncodedImages, branches: Collection[str] | None = None) -> DualOutput:
        """Logits and features of SA and GLCA from what `encode` returns.

        Args:
            branches: branches to compute, including "sa"; None: all but PWCA.
        """
        tokens, scores = encoded
        score = partial(self._score_patches, tokens, []) if scores is None else lambda _: scores
        with_glca = "glca" in (self.test_branches if branches is None else branches)
        return self._decide(tokens, None, self.family.positions(self.backbone), score, with_glca)

    def _decide(
        self,
        sa_tokens: Tensor,
        pwca_tokens: Tensor | None,
        positions: Tensor | None,
        score: Callable[[Tensor | None], Tensor] | None,
        with_glca: bool,
        trace: AttentionTrace | None = None,
    ) -> DualOutput:
        """Logits and features from the tokens after the last block.

        Args:
            positions: of all blocks, as the family's `embed` returns them.
            score: of the row that rollout starts in (None: CLS) returns (B, N), scores of the patch tokens for the
                choice of the local ones; None: none are local.
        """
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

    def _encode(
        self,
        images: Tensor,
        distractors: Tensor | None,
        with_glca: bool,
        scored: bool,
        trace: AttentionTrace | None = None,
        cameras: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, list[AttentionLayer], Tensor | None]:
        """Applies stem and blocks.

        Args:
            scored: whether queries and keys are kept for the choice of the local tokens.
            trace: takes those of all layers on the last grid, and SA's tokens.

        Returns:
            SA's tokens (B, prefix + N, D), or the prefix alone where nothing reads the others; PWCA's tokens, likewise,
            or None; for GLCA, queries and keys of SA in every layer that the choice of the local tokens needs; and
            positions, of all blocks.
        """
        with self._gradients(0):
            tokens, positions = self.family.embed(self.backbone, images)
        if cameras is not None and self.side_information is not None:
            tokens = self.side_information(tokens, cameras)
        layers: list[AttentionLayer] = []
        first_kept = self.family.first_on_last_grid(self.backbone)

        def keep(place: int, query: Tensor, key: Tensor, mixing: Tensor | None, bias: Tensor | None = None) -> None:
            is_kept = scored and is_scored(place, depth, self.local_queries)
            if place < first_kept or not (is_kept or trace is not None):
                return
            # In training, autograd holds the projection that query and key are views of, and they cost nothing (a
            # compiled block keeps what its compiler chose). Elsewhere a view alone would hold it, with V and PWCA's
            # rows.
            if self.grad_checkpointing or not torch.is_grad_enabled():
                query, key = (each.clone(memory_format=torch.contiguous_format) for each in (query, key))
            layer = AttentionLayer(query, key, mixing, bias, self.family.windows(all_blocks[place]))
            if is_kept:
                layers.append(layer)
            if trace is not None:
                trace.layers.append(layer)

        prefix = self.num_prefix_tokens
        tokens_of_distractors = None
        if distractors is not None:
            patches = tokens.shape[1] - prefix
            tokens_of_distractors = sample_distractor_tokens(
                len(tokens), prefix, patches, self.distractor_tokens, tokens.device
            )
        all_blocks = self.family.blocks(self.backbone)
        *blocks, last = all_blocks
        if self.read_out.reads_patches:
            blocks = [*blocks, last]
        depth = len(all_blocks)
        both: tuple[Tensor | None, Tensor | None] = (None, None)
        for place, block in enumerate(blocks):
            with self._gradients(place):
                tokens = self.family.enter(self.backbone, place, tokens)
            if trace is not None:
                trace.last_input = tokens
            if place >= depth - self.pwca_blocks:  # else PWCA's stream is SA's
                both = distractors, tokens_of_distractors
            of_block = self.family.positions_of_block(positions, place)
            with self._gradients(place):
                tokens, *of_layer = self._run(self._stacked_block, block, tokens, of_block, *both)
                keep(place, *of_layer)
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
                keep(depth - 1, *of_layer)
        if trace is not None:
            trace.tokens, trace.last_positions = sa, of_block
        return sa, pwca, layers, positions

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


def name_of(backbone: Any) -> str:
    """timm's name of a model, or that of its class."""
    return str((getattr(backbone, "pretrained_cfg", None) or {}).get("architecture") or type(backbone).__name__)


def _streams(stacked: Tensor, streams: int) -> Sequence[Tensor]:
    """The rows of each stream of a stack. One stream is not split: `torch.export` would fix the batch size."""
    return [stacked] if streams == 1 else stacked.chunk(streams)
