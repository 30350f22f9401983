"""DualCrossAttentionViT: one timm ViT, one forward pass, three branches.

Notable:
- SA and PWCA share all weights, so they run as one stack of 2B rows through the backbone's own blocks;
- rollout sees detached queries and keys of the SA rows, so no attention matrix and no graph is kept for it;
- GLCA is a thirteenth block with weights of its own, on few tokens, with its own norm and head;
- PWCA exists in training only. With `sa_only`, what is left is timm's model and its head.
"""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from timm.models import named_apply
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dual_cross_attention.attention.global_local import GlobalLocalBlock, select_local
from dual_cross_attention.attention.opened_block import dropout_of, run_block
from dual_cross_attention.attention.pairwise import draw_distractors, stacked_attention
from dual_cross_attention.attention.rollout import attention_rollout
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.backbones import create_backbone, embed_patches

ABLATIONS = ("full", "sa_only", "sa_glca", "sa_pwca")
LOCAL_RATIOS = {"fgvc": 0.1}  # R of the paper, by task

Ablation = Literal["full", "sa_only", "sa_glca", "sa_pwca"]


@dataclass
class DualOutput:
    """What a forward pass gives; a branch that the ablation or the mode does not have is absent."""

    logits: dict[str, Tensor] = field(default_factory=dict)  # "sa", "glca", "pwca": (B, num_classes)
    features: dict[str, Tensor] = field(default_factory=dict)  # "sa", "glca", "pwca": (B, D)
    rollout: Tensor | None = None  # (B, N) CLS's accumulated attention over the patch tokens, float32, no gradient
    local: Tensor | None = None  # (B, n) indices of the local patch tokens, the most attended first


class DualCrossAttentionViT(nn.Module):
    """Dual Cross-Attention Learning over a plain timm ViT (arXiv 2205.02151). Made by `create_model`.

    Args:
        backbone: a timm `VisionTransformer` with a class token and a head of `num_classes`.
        ablation: which branches there are: "full" is SA + GLCA + PWCA.
        local_ratio: R, the share of patch tokens that are local, in (0, 1].
        glca_init: "random", or "last_block": GLCA's block and norm start as copies of the backbone's last.
        distractor_stream: where PWCA's distractor takes its keys and values from: its "pwca" or its "sa" rows.
    """

    def __init__(
        self,
        backbone: nn.Module,
        ablation: Ablation = "full",
        local_ratio: float = 0.1,
        glca_init: Literal["random", "last_block"] = "random",
        distractor_stream: Literal["pwca", "sa"] = "pwca",
    ):
        super().__init__()
        for name, value, known in (
            ("ablation", ablation, ABLATIONS),
            ("glca_init", glca_init, ("random", "last_block")),
            ("distractor_stream", distractor_stream, ("pwca", "sa")),
        ):
            if value not in known:
                raise InputError(f"unknown {name} '{value}': there are {', '.join(known)}")
        if not 0.0 < local_ratio <= 1.0:
            raise InputError(f"local_ratio is the share R of patch tokens that are local, in (0, 1]; got {local_ratio}")
        self.backbone = backbone
        self.ablation = ablation
        self.local_ratio = local_ratio
        self.clean_distractors = distractor_stream == "sa"
        self.has_glca = ablation in ("full", "sa_glca")
        self.has_pwca = ablation in ("full", "sa_pwca")
        self.grad_checkpointing = False

        if self.has_glca:
            block, norm = copy.deepcopy(backbone.blocks[-1]), copy.deepcopy(backbone.norm)
            if glca_init == "random":
                named_apply(init_weights_vit_timm, block)
                norm.reset_parameters()
            self.glca_block = GlobalLocalBlock(block, backbone.num_prefix_tokens)
            self.glca_norm = norm
            self.glca_head = copy.deepcopy(backbone.head)
            init_weights_vit_timm(self.glca_head)

    @property
    def branches(self) -> list[str]:
        """The branches with a loss in training, "sa" first."""
        return ["sa", *(["glca"] if self.has_glca else []), *(["pwca"] if self.has_pwca else [])]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside all vectors: embeddings of the backbone."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def forward(self, images: Tensor, distractors: Tensor | None = None) -> DualOutput:
        """(B, 3, H, W) normalised images → logits and features of every branch.

        Args:
            distractors: (B,) which picture of the batch distracts picture i; None draws a random derangement.

        Raises:
            InputError: training with PWCA on a batch of one.
        """
        if not (self.training and self.has_pwca):
            distractors = None
        elif distractors is None:
            distractors = draw_distractors(images.shape[0], images.device)
        tokens, queries, keys = self._encode(images, distractors, self.has_glca)

        out = DualOutput()
        sa_tokens = tokens[: images.shape[0]]
        normed = self.backbone.norm(tokens)
        logits = self.backbone.forward_head(normed)
        for branch, part in [("sa", slice(None, images.shape[0])), ("pwca", slice(images.shape[0], None))]:
            if branch == "sa" or distractors is not None:
                out.features[branch] = normed[part, 0]
                out.logits[branch] = logits[part]
        if self.has_glca:
            out.rollout = attention_rollout(queries, keys)[:, self.backbone.num_prefix_tokens :]
            out.local = select_local(out.rollout, self.local_ratio)
            out.features["glca"] = self.glca_norm(self.glca_block(sa_tokens, out.local))[:, 0]
            out.logits["glca"] = self.glca_head(self.backbone.head_drop(out.features["glca"]))
        return out

    @torch.no_grad()
    def predict(self, images: Tensor, branch: Literal["sa", "glca"] | None = None) -> Tensor:
        """Class probabilities, (B, num_classes): the mean of SA's and GLCA's softmax, or those of one branch.

        The paper adds the two softmaxes (section 3.4); their mean ranks alike and is a distribution.
        """
        out = self._infer(images, branch)
        chosen = [branch] if branch else [name for name in ("sa", "glca") if name in out.logits]
        return torch.stack([F.softmax(out.logits[name].float(), dim=-1) for name in chosen]).mean(0)

    @torch.no_grad()
    def embed(self, images: Tensor, branch: Literal["sa", "glca"] | None = None) -> Tensor:
        """Image features, (B, 2D): SA's and GLCA's class tokens concatenated, or (B, D) of one branch."""
        out = self._infer(images, branch)
        chosen = [branch] if branch else [name for name in ("sa", "glca") if name in out.features]
        return torch.cat([out.features[name] for name in chosen], dim=-1)

    def _infer(self, images: Tensor, branch: str | None) -> DualOutput:
        if self.training:
            raise InputError("the model is in training mode: call model.eval() before predict or embed")
        if branch not in (None, *self.branches) or branch == "pwca":
            has = " and ".join(f"'{name}'" for name in self.branches if name != "pwca")
            raise InputError(f"no branch '{branch}' at inference with ablation {self.ablation}: there is {has}")
        if branch == "sa":  # needs no rollout
            normed = self.backbone.norm(self._encode(images, None, False)[0])
            return DualOutput(logits={"sa": self.backbone.forward_head(normed)}, features={"sa": normed[:, 0]})
        return self(images)

    def _encode(
        self, images: Tensor, distractors: Tensor | None, keep_attention: bool
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Stem and blocks: tokens (B or 2B, prefix + N, D); every layer's queries and keys of SA, if kept."""
        tokens = embed_patches(self.backbone, images)
        if distractors is not None:
            tokens = torch.cat([tokens, tokens])  # [SA ; PWCA]
        run = self._run_block
        if self.grad_checkpointing and torch.is_grad_enabled():
            run = partial(checkpoint, self._run_block, use_reentrant=False)
        queries, keys = [], []
        for block in self.backbone.blocks:
            tokens, *attention = run(block, tokens, distractors, images.shape[0] if keep_attention else 0)
            if attention:
                queries.append(attention[0])
                keys.append(attention[1])
        return tokens, queries, keys

    def _run_block(
        self, block: nn.Module, tokens: Tensor, distractors: Tensor | None, kept_rows: int
    ) -> tuple[Tensor, ...]:
        """One block over the stack; with `kept_rows`, also the detached query and key of that many rows."""
        kept: tuple[Tensor, ...] = ()

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            nonlocal kept
            if kept_rows:
                kept = (query[:kept_rows].detach(), key[:kept_rows].detach())
                if self.grad_checkpointing or not torch.is_grad_enabled():
                    # Autograd does not keep the projection here, and a view would: all of Q, K, V, of both streams.
                    kept = (kept[0].clone(), kept[1].clone())
            dropout = dropout_of(block.attn)
            if distractors is None:
                return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
            return stacked_attention(query, key, value, distractors, dropout, self.clean_distractors)

        tokens = run_block(block, tokens, attend)
        return (tokens, *kept)


def create_model(
    backbone: str,
    num_classes: int,
    task: str = "fgvc",
    img_size: int | tuple[int, int] = 448,
    ablation: Ablation = "full",
    local_ratio: float | None = None,
    pretrained: bool | str = False,
    glca_init: Literal["random", "last_block"] = "random",
    distractor_stream: Literal["pwca", "sa"] = "pwca",
    **timm_kwargs: Any,
) -> DualCrossAttentionViT:
    """A DCAL model over a timm backbone.

    Args:
        backbone: timm's name of a plain ViT, such as `deit_tiny_patch16_224`; `list_backbones()` has them all.
        num_classes: width of each classifier.
        task: "fgvc"; it decides the default of R.
        img_size: input size in pixels, int or (height, width); position embeddings are interpolated to it.
        ablation: "full" (SA + GLCA + PWCA), "sa_glca", "sa_pwca", or "sa_only": the plain timm model, the baseline.
        local_ratio: R, share of patch tokens that are local queries; None is the paper's (0.1 for fgvc).
        pretrained: False, True (timm's weights), or a path (.safetensors, .pth, .npz).
        glca_init: "random", or "last_block" to start GLCA as a copy of the backbone's last block and norm.
        distractor_stream: the rows whose keys and values distract: the distractor's "pwca" stream, or its "sa" one.
        **timm_kwargs: passed on to `timm.create_model`: `drop_path_rate=0.1`, …

    Raises:
        InputError: anything of the above that cannot work; the message lists what can.
    """
    if task not in LOCAL_RATIOS:
        raise InputError(f"unknown task '{task}': there is {', '.join(LOCAL_RATIOS)}")
    if num_classes < 2:
        raise InputError(f"expected at least two classes to tell apart, got num_classes={num_classes}")
    height, width = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    vit = create_backbone(backbone, num_classes, (height, width), pretrained, **timm_kwargs)
    ratio = LOCAL_RATIOS[task] if local_ratio is None else local_ratio
    return DualCrossAttentionViT(vit, ablation, ratio, glca_init, distractor_stream)
