"""DualCrossAttentionViT: one timm ViT, one forward pass, three branches.

Notable:
- SA and PWCA share all weights, so they run as one stack of 2B rows through the backbone's own blocks;
- in the last block, queries are computed for the prefix tokens only where patch tokens are not read, which makes
  `sa_only` cheaper than timm;
- rollout uses detached queries and keys of the SA rows, so no attention matrix and no graph is kept for it;
- GLCA is one more block (or M) with its own weights, norm and head, on few query tokens;
- PWCA exists in training only. `sa_only` is timm's model with its head;
- for re-identification, a BN neck and a bias-free classifier replace timm's head.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from timm.models.vision_transformer import Block, VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dual_cross_attention.attention.global_local import GlobalLocalBlock, select_local
from dual_cross_attention.attention.pairwise import sample_distractor_tokens, sample_distractors
from dual_cross_attention.backbones.opened_block import attention_of, sample_drop_path
from dual_cross_attention.backbones.plain_vit import embed_patches
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.glca import (
    GLCA_INITS,
    LOCAL_QUERIES,
    LocalQueries,
    is_scored,
    make_glca_blocks,
    score_patches,
)
from dual_cross_attention.models.inputs import check_images
from dual_cross_attention.models.neck import NeckClassifier
from dual_cross_attention.models.stacked_block import last_block, stacked_block
from dual_cross_attention.weights.pixel_stats import PixelStats

ABLATIONS = ("full", "sa_only", "sa_glca", "sa_pwca")

Ablation = Literal["full", "sa_only", "sa_glca", "sa_pwca"]


@dataclass
class DualOutput:
    """Result of a forward pass; branches that the ablation or the mode does not have are absent."""

    logits: dict[str, Tensor] = field(default_factory=dict)  # "sa", "glca", "pwca": (B, num_classes)
    features: dict[str, Tensor] = field(default_factory=dict)  # "sa", "glca", "pwca": (B, D)
    # (B, N) CLS's accumulated attention over the patch tokens, or the other scores of `local_queries`: float32, no
    # gradient
    rollout: Tensor | None = None
    local: Tensor | None = None  # (B, n) indices of the local patch tokens, the largest score first


class DualCrossAttentionViT(nn.Module):
    """Dual Cross-Attention Learning over a plain timm ViT (arXiv 2205.02151). Made by `create_model`.

    Args:
        backbone: a timm `VisionTransformer` with a class token, and a head unless there are `neck_classes`.
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

    Attributes:
        glca_is_trained: False before `glca_start` is reached in training: `predict` and `embed` then use SA only,
            unless `branch` is given.
    """

    backbone: VisionTransformer
    sa_head: NeckClassifier
    glca_block: GlobalLocalBlock
    glca_norm: nn.LayerNorm
    glca_head: nn.Module

    def __init__(
        self,
        backbone: VisionTransformer,
        ablation: Ablation = "full",
        local_ratio: float = 0.1,
        glca_init: Literal["random", "last_block"] = "random",
        distractor_stream: Literal["pwca", "sa"] = "pwca",
        neck_classes: int | None = None,
        pwca_blocks: int | None = None,
        distractor_tokens: float = 1.0,
        local_queries: LocalQueries = "rollout",
        glca_blocks: int = 1,
        distractor_noise: bool = False,
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
        depth = len(backbone.blocks)
        if pwca_blocks is not None and not 1 <= pwca_blocks <= depth:
            raise InputError(
                f"pwca_blocks: expected a number of the backbone's blocks, from 1 to {depth}; got {pwca_blocks}"
            )
        if not 0.0 <= distractor_tokens <= 1.0:
            raise InputError(
                f"distractor_tokens: expected a share of the patch tokens, in [0, 1]; got {distractor_tokens}"
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
        self.has_necks = neck_classes is not None
        if neck_classes is not None:
            self.sa_head = NeckClassifier(backbone.embed_dim, neck_classes)

        if self.has_glca:
            norm = cast(nn.LayerNorm, copy.deepcopy(backbone.norm))
            if glca_init == "random":
                norm.reset_parameters()
            blocks = cast(Sequence[Block], backbone.blocks)
            first, *more = make_glca_blocks(blocks, backbone.num_prefix_tokens, glca_init, local_queries, glca_blocks)
            self.glca_block = first
            if more:
                self.more_glca_blocks = nn.ModuleList(more)
            self.glca_norm = norm
            if neck_classes is not None:
                self.glca_head = NeckClassifier(backbone.embed_dim, neck_classes)
            else:
                self.glca_head = copy.deepcopy(backbone.head)
                init_weights_vit_timm(self.glca_head)

    @property
    def branches(self) -> list[str]:
        """The branches with a loss in training, "sa" first."""
        return ["sa", *(["glca"] if self.has_glca else []), *(["pwca"] if self.has_pwca else [])]

    @property
    def test_branches(self) -> list[str]:
        """The branches that the model has at inference, "sa" first: all but PWCA."""
        return [branch for branch in self.branches if branch != "pwca"]

    @property
    def glca_blocks(self) -> list[GlobalLocalBlock]:
        """GLCA's blocks in their order; none without GLCA."""
        return [self.glca_block, *getattr(self, "more_glca_blocks", [])] if self.has_glca else []

    @property
    def predicting_branches(self) -> list[str]:
        """The branches that predict together at inference, "sa" first."""
        return ["sa", *(["glca"] if self.has_glca and self.glca_is_trained else [])]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

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
        """Parameters without weight decay, beside all vectors: embeddings of the backbone."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def forward(
        self,
        images: Tensor,
        distractors: Tensor | None = None,
        branches: Collection[str] | None = None,
        distractor_images: Tensor | None = None,
    ) -> DualOutput:
        """(B, 3, H, W) normalized images → logits and features of every branch.

        Args:
            distractors: (B,) the index of each image's distractor; None samples a random derangement.
            branches: branches to compute, including "sa"; None: all of the model.
            distractor_images: (B, 3, H, W) normalized, the distractor of each image where it is not in the batch; each
                pair distracts each other, and the distractors have no output. They take as much time and memory as the
                images. `distractors` is not used then.

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
        return self._forward(images, distractors, "glca" in branches, distractor_images=distractor_images)

    def _forward(
        self,
        images: Tensor,
        distractors: Tensor | None,
        with_glca: bool,
        choose_local: bool = True,
        distractor_images: Tensor | None = None,
    ) -> DualOutput:
        scored = with_glca and choose_local
        encoded = images if distractor_images is None else torch.cat([images, distractor_images])
        sa_tokens, pwca_tokens, queries, keys = self._encode(encoded, distractors, with_glca, scored)
        if pwca_tokens is not None and distractor_images is not None:  # these have no output
            sa_tokens, pwca_tokens = sa_tokens[: len(images)], pwca_tokens[: len(images)]
            queries, keys = ([layer[: len(images)] for layer in layers] for layers in (queries, keys))
        prefix = self.backbone.num_prefix_tokens
        classified = [sa_tokens[:, :prefix], *([] if pwca_tokens is None else [pwca_tokens])]
        normed = self.backbone.norm(torch.cat(classified))

        features = dict(zip(("sa", "pwca"), normed[:, 0].split(len(images)), strict=False))
        out = DualOutput(self._classify(normed, features), features)
        if with_glca:
            local = torch.zeros(len(images), 0, dtype=torch.int64, device=images.device)
            if scored:
                out.rollout = score_patches(sa_tokens, queries, keys, prefix, self.local_queries, self.training)
                out.local = local = select_local(out.rollout, self.local_ratio)
            *blocks, last = self.glca_blocks
            for block in blocks:
                drop_path = sample_drop_path(block.block, len(images), images.device)
                sa_tokens = block.update(sa_tokens, local, drop_path)
            drop_path = sample_drop_path(last.block, len(images), images.device)
            out.features["glca"] = self.glca_norm(last(sa_tokens, local, drop_path)[:, 0])
            out.logits["glca"] = self.glca_head(self.backbone.head_drop(out.features["glca"]))
        return out

    def _classify(self, normed: Tensor, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits of SA and, where it is there, PWCA, from their stack of prefix tokens after the norm."""
        if self.has_necks:
            return {name: self.sa_head(feature, passing=name == "pwca") for name, feature in features.items()}
        return dict(zip(features, self.backbone.forward_head(normed).chunk(len(features)), strict=True))

    @torch.no_grad()
    def predict(self, images: Tensor, branch: Literal["sa", "glca"] | None = None) -> Tensor:
        """Class probabilities, (B, num_classes): the mean of SA's and GLCA's softmax, or those of one branch.

        The paper adds the two softmaxes (section 4.1); their mean ranks alike and is a distribution. A model that was
        saved before GLCA's training started predicts with SA alone.

        Args:
            images: (B, 3, H, W) normalized, of the model's size, dtype and device; B = 0 gives (0, num_classes).

        Raises:
            InputError: a model in training mode or for re-identification, a branch that it does not have, or images
                that `check_images` refuses.
        """
        logits = self.predict_logits(images, branch).values()
        return torch.stack([F.softmax(each, dim=-1) for each in logits]).mean(0)

    @torch.no_grad()
    def predict_logits(self, images: Tensor, branch: Literal["sa", "glca"] | None = None) -> dict[str, Tensor]:
        """The logits that `predict` makes probabilities of, (B, num_classes) float32 by branch; raises as it does."""
        if self.has_necks:
            raise InputError("a re-identification model knows its training identities only: use embed, not predict")
        out = self._infer(images, branch)
        return {name: out.logits[name].float() for name in ([branch] if branch else self.predicting_branches)}

    @torch.no_grad()
    def embed(self, images: Tensor, branch: Literal["sa", "glca"] | None = None, after_neck: bool = False) -> Tensor:
        """Image features, (B, 2D): SA's and GLCA's class tokens concatenated, or (B, D) of one branch.

        A model without GLCA, or one that was saved before GLCA's training started, gives SA's (B, D).

        Args:
            images: (B, 3, H, W) normalized, of the model's size, dtype and device; B = 0 gives (0, 2D).
            after_neck: the features that the classifiers see, of a re-identification model.

        Raises:
            InputError: a model in training mode, a branch that it does not have, a neck where there is none, or images
                that `check_images` refuses.
        """
        features = self._infer(images, branch).features
        chosen = [branch] if branch else self.predicting_branches
        if after_neck:
            features = self.through_necks(features)
        return torch.cat([features[name] for name in chosen], dim=-1)

    def through_necks(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of "sa" and "glca", (B, D) each, as their classifiers see them at inference.

        Raises:
            InputError: the model has no necks, since it is not for re-identification.
        """
        if not self.has_necks:
            raise InputError("only a model for task 'reid' has necks: there is no feature after them")
        heads = {"sa": self.sa_head, **({"glca": self.glca_head} if self.has_glca else {})}
        return {name: cast(NeckClassifier, heads[name]).neck(feature) for name, feature in features.items()}

    def _infer(self, images: Tensor, branch: str | None) -> DualOutput:
        if self.training:
            raise InputError("the model is in training mode: call model.eval() before predict or embed")
        if branch not in (None, *self.branches) or branch == "pwca":
            has = " and ".join(f"'{name}'" for name in self.test_branches)
            raise InputError(f"no branch '{branch}' at inference with ablation {self.ablation}: there is {has}")
        check_images(self.backbone, images)
        if not images.shape[0]:
            return self._empty(images)
        with_glca = branch == "glca" or (branch is None and "glca" in self.predicting_branches)
        return self._forward(images, None, with_glca, self._local_tokens_matter)

    @property
    def _local_tokens_matter(self) -> bool:
        """Whether GLCA's class token depends on which patch tokens are local.

        In one block it attends to all tokens, and tokens with a query do not see each other: neither the rollout nor
        the local tokens are computed for predictions and features alone.
        """
        return len(self.glca_blocks) > 1 or self.local_queries in ("local_only", "cross")

    def _empty(self, images: Tensor) -> DualOutput:
        """Logits (0, num_classes) and features (0, D) of every branch of inference, for an empty batch."""
        classes = self.sa_head.classifier.out_features if self.has_necks else self.backbone.num_classes
        names = self.test_branches
        logits, features = ({n: images.new_zeros(0, w) for n in names} for w in (classes, self.backbone.embed_dim))
        return DualOutput(logits, features)

    def _encode(
        self, images: Tensor, distractors: Tensor | None, with_glca: bool, scored: bool
    ) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
        """Applies stem and blocks.

        Args:
            scored: whether queries and keys are kept for the choice of the local tokens.

        Returns:
            SA's tokens (B, prefix + N, D), or without GLCA the prefix alone; PWCA's prefix (B, prefix, D), or None; for
            GLCA, queries (of the last layer: CLS's) and keys of SA, (B, heads, tokens, head_dim), of every layer that
            the choice of the local tokens needs.
        """
        tokens = embed_patches(self.backbone, images)
        # In training, autograd holds the projection that query and key are views of, and they cost nothing (a compiled
        # block keeps what its compiler chose). Elsewhere a view alone would hold it, with V and PWCA's rows.
        copied = self.grad_checkpointing or not torch.is_grad_enabled()
        queries: list[Tensor] = []
        keys: list[Tensor] = []

        def keep(*query_and_key: Tensor) -> None:
            for kept, tensor in zip((queries, keys), query_and_key, strict=True):
                kept.append(tensor.clone(memory_format=torch.contiguous_format) if copied else tensor)

        prefix = self.backbone.num_prefix_tokens
        tokens_of_distractors = None
        if distractors is not None:
            patches = tokens.shape[1] - prefix
            tokens_of_distractors = sample_distractor_tokens(
                len(tokens), prefix, patches, self.distractor_tokens, tokens.device
            )
        *blocks, last = cast(Sequence[Block], self.backbone.blocks)
        for place, block in enumerate(blocks):
            both = place >= len(blocks) + 1 - self.pwca_blocks  # else PWCA's stream is SA's
            of_pwca = (distractors, tokens_of_distractors) if both else (None, None)
            tokens, *query_and_key = self._run(self._stacked_block, block, tokens, *of_pwca)
            if scored and is_scored(place, len(blocks) + 1, self.local_queries):
                keep(*query_and_key)
        of_pwca = distractors, tokens_of_distractors
        sa, pwca, *query_and_key = self._run(self._last_block, last, tokens, *of_pwca, prefix, with_glca)
        if scored and is_scored(len(blocks), len(blocks) + 1, self.local_queries):
            keep(*query_and_key)
        return sa, pwca, queries, keys

    def _run(
        self,
        run_block: Callable,
        block: Block,
        tokens: Tensor,
        distractors: Tensor | None,
        distractor_tokens: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, ...]:
        """Runs a block, under gradient checkpointing if enabled."""
        rows = len(tokens) if distractors is None else 2 * len(distractors)
        drop_path = sample_drop_path(block, rows, tokens.device)
        noise = None
        if distractors is not None and self.distractor_noise:
            attention = attention_of(block)
            shape = 2, len(distractors), attention.num_heads, tokens.shape[1], attention.head_dim
            noise = torch.randn(shape, device=tokens.device)
        given = block, tokens, distractors, drop_path, self.clean_distractors, distractor_tokens, noise, *options
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(run_block, *given, use_reentrant=False)
        return run_block(*given)
