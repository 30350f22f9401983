"""timm's plain Vision Transformers: creates one, loads its weights, checks that its attention is accessible."""

import difflib
from typing import Any, cast

import timm
from timm.layers import PatchEmbed
from timm.models import is_model_in_modules
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape, short_repr
from dual_cross_attention.weights import Loaded, fetch_imagenet_weights, load_weights

PLAIN_VIT_MODULES = ["vision_transformer", "deit"]
"""timm's modules with plain ViTs; each model is checked when it is created."""
READING_KWARGS = {
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_filter_fn",
    "pretrained_strict",
}
"""Arguments of timm.create_model that have it load weights."""
LARGEST_KWARG = 100_000
LARGEST_KWARGS = {"depth": 1000}


def list_backbones() -> list[str]:
    """Names of timm's plain ViTs. A few of them have no class token and are refused when they are created."""
    return timm.list_models(module=PLAIN_VIT_MODULES)


def create_backbone(
    name: str, num_classes: int, img_size: tuple[int, int], pretrained: bool | str = False, **timm_kwargs: Any
) -> VisionTransformer:
    """A timm ViT with a head of `num_classes`, its position embedding resampled to `img_size`.

    Args:
        name: timm's name, with or without a pretrained tag (`vit_base_patch16_224.augreg_in21k`).
        num_classes: width of the classifier; 0: none.
        img_size: (height, width) in pixels, multiples of the patch size.
        pretrained: False: random; True: timm's weights (fetched once, then cached); a path: see `load_weights`.
        **timm_kwargs: passed on, such as `drop_path_rate=0.1`, `depth=4`.

    Raises:
        InputError: unknown or unsuitable backbone, size, or weights.
    """
    if not timm.is_model(name) or not is_model_in_modules(name, PLAIN_VIT_MODULES):
        nearest = ", ".join(difflib.get_close_matches(name, list_backbones(), n=3, cutoff=0))
        if timm.is_model(name):
            raise InputError(
                f"backbone '{name}' is not a plain ViT of timm, so its attention is not accessible; the nearest that "
                f"are: {nearest} (list_backbones() has all)"
            )
        raise InputError(f"unknown backbone '{escape(name):.80}': did you mean {nearest}? (list_backbones() has all)")
    _check_kwargs(timm_kwargs)
    try:
        created = timm.create_model(name, num_classes=num_classes, img_size=img_size, **timm_kwargs)
    except Exception as error:  # a patch of 0 pixels, a layer that does not exist: each raises something else
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"timm cannot build '{name}' with img_size={img_size}, {timm_kwargs}: {reason}") from error

    backbone = cast(VisionTransformer, created)
    check_is_plain(backbone, name)
    patch = cast(PatchEmbed, backbone.patch_embed).patch_size
    if any(side % p for side, p in zip(img_size, patch, strict=True)):
        down = tuple(max(p, side // p * p) for side, p in zip(img_size, patch, strict=True))
        raise InputError(
            f"img_size {img_size[0]}x{img_size[1]} is not a multiple of the patch size {patch[0]}x{patch[1]} of "
            f"'{name}': take {down[0]}x{down[1]} or {down[0] + patch[0]}x{down[1] + patch[1]}"
        )
    load_pretrained(backbone, name, pretrained)
    return backbone


def load_pretrained(
    backbone: VisionTransformer,
    name: str,
    pretrained: bool | str,
    key: str | None = None,
    img_size: tuple[int, int] | None = None,
) -> Loaded | None:
    """Weights into a backbone, and the mean and std that a file names for its pixels into its `pretrained_cfg`.

    Args:
        name: timm's name of it.
        pretrained, key, img_size: as `pretrained`, `weights_key` and `weights_img_size` of `create_model`.

    Returns:
        What a file holds in addition to the backbone; None where `pretrained` is no path.

    Raises:
        InputError: weights that cannot be read or do not fit.
    """
    if pretrained is True:
        fetch_imagenet_weights(backbone, name)
    if isinstance(pretrained, bool):
        return None
    loaded = load_weights(backbone, pretrained, key, img_size)
    if loaded.stats:
        named = {"mean": loaded.stats.mean, "std": loaded.stats.std}
        known: dict = backbone.pretrained_cfg  # type: ignore[assignment]  # timm's resolve_data_config reads it
        backbone.pretrained_cfg = {**known, **named}  # type: ignore[assignment]
    return loaded


def embed_patches(backbone: VisionTransformer, images: Tensor) -> Tensor:
    """Applies the stem, up to the first block: (B, 3, H, W) → (B, prefix + N, D)."""
    tokens = backbone._pos_embed(backbone.patch_embed(images))
    return backbone.norm_pre(tokens)


def _check_kwargs(timm_kwargs: dict[str, Any]) -> None:
    """Refuses arguments that read files or exhaust memory: they may come from an untrusted model file's header."""
    for name, value in timm_kwargs.items():
        if name in READING_KWARGS:
            raise InputError(
                f"backbone_kwargs: expected what shapes the model, got '{name}': --weights says what to load"
            )
        largest = LARGEST_KWARGS.get(name, LARGEST_KWARG)
        if isinstance(value, int | float) and not abs(value) <= largest:
            raise InputError(f"backbone_kwargs: expected {name} of at most {largest:,}, got {short_repr(value)}")


def check_is_plain(backbone: VisionTransformer, name: str) -> None:
    """Raises InputError unless the forward pass is that of a plain ViT with a class token."""
    wrong = None
    if type(backbone).forward_features is not VisionTransformer.forward_features:
        wrong = "its forward pass is not that of a plain ViT"
    elif backbone.cls_token is None or backbone.global_pool != "token":
        wrong = f"it has no class token to classify (global_pool={backbone.global_pool!r})"
    elif not all(type(block) is Block and type(block.attn) is Attention for block in backbone.blocks):
        wrong = f"its blocks are {type(backbone.blocks[0]).__name__}s, not plain pre-norm ones"
    elif not isinstance(backbone.norm, nn.LayerNorm) or not isinstance(backbone.fc_norm, nn.Identity):
        wrong = "its class token is not read after a final LayerNorm"
    elif backbone.patch_drop.__class__.__name__ == "PatchDropout":
        wrong = "patch_drop_rate > 0 drops the tokens that rollout is about"
    if wrong:
        raise InputError(f"backbone '{name}' does not fit: {wrong}; try deit_tiny_patch16_224 or vit_base_patch16_224")
