"""The feature that is classified: the class token, the mean of the tokens, or a learned query's attention to them.

The method speaks of the class token: its row of rollout selects the local tokens, and GLCA's output is its token. A
pooled backbone has no such token, or does not classify it. There the pool takes its place: rollout starts in the row of
weights with which the pool reads the tokens, and GLCA has a pool of its own over the tokens that it computes.
"""

import copy
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from timm.layers import AttentionPoolLatent
from timm.models import named_apply
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn


class ReadOut(ABC):
    """Where a backbone's feature comes from. Stateless, as a family is.

    Attributes:
        name: for people.
        reads_patches: whether the feature depends on patch tokens after the last block; else on prefix tokens alone.
    """

    name: str
    reads_patches: bool

    def normalize(self, backbone: Any, tokens: Tensor) -> Tensor:
        """What `feature` and `logits` read, after the backbone's norm: (B, n, D) tokens after the last block →
        (B, m, D)."""
        return backbone.norm(tokens)

    @abstractmethod
    def feature(self, backbone: Any, normed: Tensor) -> Tensor:
        """(B, m, D) of `normalize` → (B, D)."""

    @abstractmethod
    def logits(self, backbone: Any, normed: Tensor, feature: Tensor) -> Tensor:
        """Of the backbone's own head: (B, m, D) of `normalize` and the feature of it → (B, num_classes)."""

    def classifier(self, backbone: Any) -> nn.Module:
        """The layer that classifies the feature."""
        return cast(nn.Module, backbone.head)

    def drop(self, backbone: Any, feature: Tensor) -> Tensor:
        """The dropout before the classifier: (B, D) → (B, D)."""
        return cast(Tensor, backbone.head_drop(feature))

    @abstractmethod
    def start_row(self, backbone: Any, tokens: Tensor, normed: Tensor) -> Tensor | None:
        """The weights with which the feature reads the tokens, where rollout starts: (B, n) float32.

        Rows sum to 1, or to less where a part is of no token of the image. None: all of it is on the first token.

        Args:
            tokens: (B, n, D) after the last block.
            normed: of `normalize`.
        """

    @abstractmethod
    def make_pool(self, backbone: Any, glca_init: str) -> "Pool | None":
        """GLCA's own pool; None where its feature is the class token.

        Args:
            glca_init: "random", or "last_block": a copy of the backbone's.
        """


class ClassToken(ReadOut):
    """The first token."""

    name = "class token"
    reads_patches = False

    def feature(self, backbone: Any, normed: Tensor) -> Tensor:
        return normed[:, 0]

    def logits(self, backbone: Any, normed: Tensor, feature: Tensor) -> Tensor:
        return backbone.forward_head(normed)  # of a distilled DeiT, from two tokens

    def start_row(self, backbone: Any, tokens: Tensor, normed: Tensor) -> None:
        return None

    def make_pool(self, backbone: Any, glca_init: str) -> None:
        return None


class Pooled(ReadOut):
    """The mean of the tokens (`global_pool="avg"`), or the attention of a learned query to them ("map")."""

    reads_patches = True

    def __init__(self, name: str):
        self.name = name

    def feature(self, backbone: Any, normed: Tensor) -> Tensor:
        return backbone.fc_norm(backbone.pool(normed))

    def logits(self, backbone: Any, normed: Tensor, feature: Tensor) -> Tensor:
        return backbone.head(backbone.head_drop(feature))

    def start_row(self, backbone: Any, tokens: Tensor, normed: Tensor) -> Tensor:
        skipped = tokens_not_pooled(backbone)
        return pool_row(backbone.attn_pool, normed, skipped)

    def make_pool(self, backbone: Any, glca_init: str) -> "TokenPool":
        pool = TokenPool(backbone.attn_pool, backbone.fc_norm, tokens_not_pooled(backbone))
        if glca_init == "random":
            named_apply(init_weights_vit_timm, pool)
        return pool


AVERAGE = Pooled("average")
ATTENTION_POOL = Pooled("attention pool")
CLASS_TOKEN = ClassToken()


def read_out_of(backbone: Any) -> ReadOut | None:
    """Of a timm Vision Transformer or `Eva`; None: of one that has no row of weights ("max", "avgmax", "prr", "")."""
    if backbone.global_pool == "token" and isinstance(backbone.fc_norm, nn.Identity):
        return CLASS_TOKEN if backbone.cls_token is not None else None
    if backbone.global_pool == "map":
        return ATTENTION_POOL if is_openable(backbone.attn_pool) else None
    return AVERAGE if backbone.global_pool == "avg" else None


def is_openable(pool: nn.Module | None) -> bool:
    """Whether an attention pool has one query, no positions, and its output is that of the query."""
    return (
        type(pool) is AttentionPoolLatent and pool.latent_len == 1 and pool.pos_embed is None and pool.pool == "token"
    )


def tokens_not_pooled(backbone: Any) -> int:
    """Number of prefix tokens that the pool leaves out; timm's `Eva` leaves them out of the mean alone."""
    includes_prefix = getattr(backbone, "pool_include_prefix", backbone.attn_pool is not None)
    return 0 if includes_prefix else backbone.num_prefix_tokens


class Pool(nn.Module, ABC):
    """GLCA's pool, with weights of its own, of the kind of a backbone's read-out."""

    @abstractmethod
    def forward(self, tokens: Tensor, norm: nn.Module) -> Tensor:
        """(B, n, D) tokens after GLCA's blocks → its feature, (B, D).

        Args:
            norm: GLCA's.
        """

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, beside all vectors."""
        return set()

    @abstractmethod
    def row(self, tokens: Tensor, norm: nn.Module) -> Tensor:
        """The weights with which the tokens are read, (B, n) float32; sums as those of `ReadOut.start_row`."""


class TokenPool(Pool):
    """The mean or a learned query's attention.

    Args:
        attn_pool: of the backbone, or None for the mean; it is copied.
        fc_norm: of the backbone, after the pool; it is copied.
        skipped: number of tokens in front that are left out.
    """

    def __init__(self, attn_pool: nn.Module | None, fc_norm: nn.Module, skipped: int):
        super().__init__()
        self.attn_pool = copy.deepcopy(attn_pool)
        self.fc_norm = copy.deepcopy(fc_norm)
        self.skipped = skipped

    def forward(self, tokens: Tensor, norm: nn.Module) -> Tensor:
        pooled = norm(tokens)[:, self.skipped :]
        return self.fc_norm(pooled.mean(dim=1) if self.attn_pool is None else self.attn_pool(pooled))

    def row(self, tokens: Tensor, norm: nn.Module) -> Tensor:
        return pool_row(self.attn_pool, norm(tokens), self.skipped)


@torch.no_grad()
def pool_row(attn_pool: Any, normed: Tensor, skipped: int) -> Tensor:
    """Weights of the tokens in a pool, mean over heads: (B, n, D) → (B, n) float32; 0 for the `skipped` first ones."""
    pooled = normed[:, skipped:]
    if attn_pool is None:
        row = torch.full(pooled.shape[:2], 1 / pooled.shape[1], device=normed.device)
    else:
        heads = attn_pool.num_heads
        query = attn_pool.q_norm(attn_pool.q(attn_pool.latent).unflatten(-1, (heads, -1)).transpose(1, 2))
        key = attn_pool.kv(pooled).unflatten(-1, (2, heads, -1))[:, :, 0].transpose(1, 2)
        with torch.autocast(normed.device.type, enabled=False):
            scores = query.float() @ attn_pool.k_norm(key).float().transpose(-2, -1) * attn_pool.scale
        row = scores.softmax(dim=-1).mean(1)[:, 0]
    return torch.nn.functional.pad(row, (skipped, 0))
