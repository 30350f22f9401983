"""DualCrossAttentionViT: one timm backbone, one forward pass, three branches.

Notable:
- `encoding.py` runs the backbone over the stack of SA and PWCA, `branch_heads.py` makes logits and features of its
  tokens, `branch_inference.py` predicts with them. Here are the arguments, the modules and the forward pass;
- GLCA is one more block (or M) with its own weights, norm and head, on few query tokens;
- PWCA exists in training only. `sa_only` is timm's model with its head;
- for re-identification, a BN neck and a bias-free classifier replace timm's head;
- what a backbone's stem and blocks do, and where its feature comes from, is said by its family and read-out
  (`backbones/`): nothing here depends on one.
"""

import copy
from collections.abc import Collection
from functools import partial
from typing import Any, Literal

import torch
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional as F

from dual_cross_attention.attention.global_local import GlobalLocalBlock
from dual_cross_attention.attention.pairwise import sample_distractors
from dual_cross_attention.backbones.registry import open_backbone
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.arguments import ABLATIONS, Ablation, check_fit, check_values, name_of
from dual_cross_attention.models.attention_trace import AttentionTrace, DualOutput, EncodedImages
from dual_cross_attention.models.branch_heads import BranchHeads
from dual_cross_attention.models.encoding import EncodedStreams, EncodingBackbone
from dual_cross_attention.models.glca import LocalQueries, make_glca_blocks
from dual_cross_attention.models.neck import NeckClassifier
from dual_cross_attention.models.side_information import UNKNOWN, SideInformation
from dual_cross_attention.weights.pixel_stats import PixelStats

__all__ = ["ABLATIONS", "Ablation", "DualCrossAttentionViT", "DualOutput"]


class DualCrossAttentionViT(EncodingBackbone, BranchHeads):
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
        check_values(ablation, glca_init, distractor_stream, local_queries, local_ratio)
        self.family, self.read_out = open_backbone(backbone, name_of(backbone))
        check_fit(backbone, self.family, self.read_out, pwca_blocks, distractor_tokens, local_queries)
        self.backbone = backbone
        self.ablation = ablation
        self.local_ratio = local_ratio
        self.clean_distractors = distractor_stream == "sa"
        self.pwca_blocks = len(self.family.blocks(backbone)) if pwca_blocks is None else pwca_blocks
        self.distractor_tokens = distractor_tokens
        self.distractor_noise = distractor_noise
        self.local_queries = local_queries
        self.has_glca = ablation in ("full", "sa_glca")
        self.has_pwca = ablation in ("full", "sa_pwca")
        self.glca_is_trained = True
        self.pretrained_stats: PixelStats | None = None  # of the pixels, as the weights' file names them
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

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks, also those of GLCA, one graph for all that differ in weights only; a graph break is an
        error.

        Everything else stays eager: the stem, rollout, the choice of local tokens, the heads.

        Args:
            backend: of `torch.compile`.
        """
        super().compile_blocks(backend)
        for block in self.glca_blocks:
            block.compile(fullgraph=True, backend=backend)

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
        tokens = self._encode(encoded, distractors, with_glca, scored, trace, cameras)
        if tokens.pwca is not None and distractor_images is not None:  # these have no output
            tokens = tokens.first(len(images))
        score = partial(self._score_patches, tokens.sa, tokens.layers) if scored else None
        return self._decide(tokens, score, with_glca, trace)

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
        positions = self.family.positions(self.backbone)
        return self._decide(EncodedStreams(tokens, None, [], positions), score, with_glca)
