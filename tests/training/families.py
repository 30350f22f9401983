"""A tiny backbone of each family, for trainings: 2 blocks, or 2 stages of 2, for images of 32 or 64 pixels."""

import json

SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 2}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", SMALL | {"patch_size": 8}),
    "hybrid": ("vit_tiny_r_s16_p8_224", SMALL),
    "eva": ("vit_small_patch16_dinov3", SMALL),
    "eva, mixed": ("vit_small_patch16_rope_mixed_ape_224", SMALL),
    "pooled": ("vit_base_patch16_siglip_224", SMALL),
    "cait": ("cait_xxs24_224", SMALL),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 24, "num_heads": [2, 4], "depths": [2, 2], "window_size": 3},
    ),
}
"""By name: timm's name of the model, and arguments that make it tiny."""


def settings_of(family: str) -> dict[str, object]:
    """Settings of a training configuration."""
    backbone, kwargs = FAMILIES[family]
    return {"backbone": backbone, "backbone_kwargs": kwargs}


def flags_of(family: str, **more: object) -> list[str]:
    """The same as flags of `dcal train`, with more arguments of timm."""
    backbone, kwargs = FAMILIES[family]
    return [f"--backbone={backbone}", f"--backbone_kwargs={json.dumps(kwargs | more)}"]
