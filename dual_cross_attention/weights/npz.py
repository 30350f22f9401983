"""Google's `.npz` files of ViTs (JAX layout, as `ViT-B_16.npz`), as a state dict with timm's names."""

import copy
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dual_cross_attention.errors import InputError
from dual_cross_attention.weights.archives import npz_shapes
from dual_cross_attention.weights.fitting import in_pixels
from dual_cross_attention.weights.pixel_stats import HALF, PixelStats

PREFIXES = ("opt/target/", "params/img/", "params/", "")
STATS = PixelStats(HALF, HALF, "Google's .npz files")
"""Google scales pixels to -1 ... 1, whatever the name of the timm model that the file fits."""
ABSENT = ("reg_token", "dist_token", "norm_pre", ".ls1.", ".ls2.", ".q_norm.", ".k_norm.", "fc_norm.")
"""Parts of names that the format does not have."""


def read_npz(path: Path, backbone: Any) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """timm's reader fills a copy of the backbone that has the position embedding of the file.

    Args:
        backbone: it is not changed.

    Returns:
        The tensors, the patch embedding resampled to the backbone's patches; and (height, width) of the file's patches
        in pixels.

    Raises:
        InputError: another layout, or depth or heads of another model, which timm's reader would accept silently.
    """
    if not isinstance(backbone, VisionTransformer):
        raise InputError(f"weights from {path}: an .npz holds a plain ViT, the backbone is of another family")
    shapes = npz_shapes(path)
    prefix = next((each for each in PREFIXES if f"{each}embedding/kernel" in shapes), None)
    if prefix is None:
        raise InputError(f"weights from {path}: expected Google's names, such as embedding/kernel, got none")
    shapes = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    stacked = shapes.get("Transformer/encoderblock/LayerNorm_0/scale")
    blocks = {name.split("/")[1] for name in shapes if name.startswith("Transformer/encoderblock_")}
    depth = stacked[0] if stacked else len(blocks)
    query = next((shape for name, shape in shapes.items() if name.endswith("/query/kernel")), None)
    query = query[1:] if query and stacked else query
    attention = backbone.blocks[0].attn
    expected = (backbone.embed_dim, attention.num_heads, attention.head_dim)
    if depth != len(backbone.blocks) or query != expected:
        raise InputError(
            f"weights from {path} do not fit the backbone: {depth} blocks for {len(backbone.blocks)}; "
            f"query kernels {query} for {expected} (width, heads, width of a head)"
        )
    if len(shapes["embedding/kernel"]) != 4:
        raise InputError(
            f"weights from {path}: embedding/kernel: expected (height, width, channels, width of the model), got "
            f"{shapes['embedding/kernel']}"
        )
    positions = shapes.get("pos_embedding") or shapes.get("Transformer/posembed_input/pos_embedding")
    copied = copy.deepcopy(backbone)
    if positions and copied.pos_embed is not None:
        copied.pos_embed = nn.Parameter(torch.zeros(positions))
    copied.load_pretrained(str(path))
    has_pool = "MAPHead_0/probe" in shapes
    absent = ABSENT if has_pool else (*ABSENT, "attn_pool.")
    has_head = shapes.get("head/bias") == (backbone.num_classes,)
    state = {
        name: value.detach()
        for name, value in copied.state_dict().items()
        if not any(part in name for part in absent) and (has_head or not name.startswith("head."))
    }
    # Parts that timm's reader passes over, since the backbone has none, are unexpected ones, as in other files.
    if has_pool and copied.attn_pool is None:
        state["attn_pool.latent"] = torch.zeros(shapes["MAPHead_0/probe"])
    if "Transformer/encoder_norm/scale" in shapes and isinstance(copied.norm, nn.Identity):
        state["norm.weight"] = torch.zeros(shapes["Transformer/encoder_norm/scale"])
    height, width = shapes["embedding/kernel"][:2]
    return state, in_pixels((height, width), backbone)
