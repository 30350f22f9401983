"""Compares a state dict, in any layout that timm reads, with the backbone that it is loaded into."""

import contextlib
import io
import math
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from timm.models import cait, eva, swin_transformer, vision_transformer
from torch import Tensor, nn

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

HEADS = ("head.", "head_dist.", "fc.", "classifier.")
KERNELS = ("patch_embed.proj.weight", "visual.conv1.weight", "vision_embed.proj.weight")
"""The patch embedding in the layouts that timm converts: its own, CLIP's, BEiT-3's."""
DECODERS = ("decoder_", "mask_token", "masked_embed")
"""Decoder of masked pretraining, such as MAE's; not part of the backbone."""


@dataclass
class Fit:
    """How a state dict compares with a backbone.

    Args:
        state: tensors with timm's names, the patch embedding resampled to the backbone's patches.
        fitting: names that fit; a position embedding of any grid does.
        left_out: heads that are missing or of another width, and so stay newly initialized.
        decoder: how many tensors of a decoder are left out.
        missing, unexpected: names.
        shapes: "NAME (shape) for (expected shape)".
        patch: (height, width) of the file's patches in pixels, before they are resampled; None: unknown.
        has_positions_of_target: whether the position embedding is already that of the backbone's grid.
        windows: of tables of relative positions, "7×7 → 6×6", where they were resized.
        has_rectangles: whether tables are of windows that are no squares, by their number of entries.
    """

    state: dict[str, Tensor]
    fitting: list[str]
    left_out: list[str]
    decoder: int
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]
    patch: tuple[int, int] | None
    has_positions_of_target: bool = False
    windows: tuple[str, ...] = ()
    has_rectangles: bool = False

    @property
    def is_complete(self) -> bool:
        return not (self.missing or self.unexpected or self.shapes)


def fit(state: dict[str, Tensor], backbone: Any, with_head: bool = True, patch: tuple[int, int] | None = None) -> Fit:
    """Compares a state dict with a backbone, whose weights are not changed.

    Args:
        with_head: False: heads are left out, whatever their width.
        patch: (height, width) of the file's patches in pixels, where `state` has them resampled; None: as in `state`.
    """
    patch = patch or _patch_size(state, backbone)
    is_radio = any(name.startswith("radio_model.") for name in state)
    tables = tables_of(state)
    state = _to_timm(state, backbone, is_radio)
    decoder = {name for name in state if name.startswith(DECODERS)}
    state = {name: value for name, value in state.items() if name not in decoder}
    expected = {name: value.shape for name, value in backbone.state_dict().items()}

    def fits(name: str) -> bool:
        if name == "pos_embed":
            ours, theirs = expected[name], state[name].shape
            return len(theirs) == 3 and (theirs[0], theirs[2]) == (1, ours[2])
        return state[name].shape == expected[name]

    left_out = sorted(
        name
        for name in state.keys() | expected.keys()
        if name.startswith(HEADS) and not (with_head and name in state and name in expected and fits(name))
    )
    state = {name: value for name, value in state.items() if name not in left_out}
    common = sorted(state.keys() & expected.keys())
    return Fit(
        state,
        [name for name in common if fits(name)],
        left_out,
        len(decoder),
        sorted(expected.keys() - state.keys() - set(left_out)),
        sorted(state.keys() - expected.keys()),
        [f"{name} {tuple(state[name].shape)} for {tuple(expected[name])}" for name in common if not fits(name)],
        patch,
        is_radio,
        _resized_windows(tables, state),
        any(_side(table) is None for table in tables.values()),
    )


def tables_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swin's tables of relative positions, ((2h - 1) · (2w - 1), heads) for windows of h × w tokens, by name."""
    return {name: value for name, value in state.items() if name.endswith("relative_position_bias_table")}


def _side(table: Tensor) -> int | None:
    """Of the square window that a table is for; None: the number of its entries is of no square."""
    root = math.isqrt(table.shape[0])
    return (root + 1) // 2 if root * root == table.shape[0] and root % 2 else None


def _resized_windows(tables: dict[str, Tensor], converted: dict[str, Tensor]) -> tuple[str, ...]:
    """Each change of a window once, of tables that were resized."""
    found = {}
    for name, table in tables.items():
        new = converted.get(name, table)
        if new.shape != table.shape or not torch.equal(new, table):
            sides = (_side(each) for each in (table, new))
            found[" → ".join(f"{side}×{side}" if side else "a rectangle" for side in sides)] = None
    return tuple(found)


def blocks_of(backbone: Any) -> list[nn.Module]:
    """The blocks of a timm model in their order: `blocks`, or those of its stages, `layers[i].blocks`."""
    if hasattr(backbone, "blocks"):
        return list(backbone.blocks)
    return [block for stage in backbone.layers for block in stage.blocks]


def _patch_size(state: dict[str, Tensor], backbone: Any) -> tuple[int, int] | None:
    """(height, width) in pixels of a file's patches, from its patch embedding; None: it has none."""
    kernel = next((value for name, value in state.items() if name.endswith(KERNELS)), None)
    if kernel is None:
        return None
    # A linear layer on flat patches is reshaped by timm to the backbone's.
    patch = kernel.shape[-2:] if kernel.ndim == 4 else backbone.patch_embed.patch_size
    return in_pixels((patch[0], patch[1]), backbone)


def in_pixels(patch: tuple[int, int], backbone: Any) -> tuple[int, int]:
    """(height, width) of a patch, which a hybrid gives in cells of its feature map, in pixels of the image."""
    stem = backbone.patch_embed
    ratio = stem.feat_ratio(as_scalar=False)  # pixels of a patch of the backbone
    return patch[0] * ratio[0] // stem.patch_size[0], patch[1] * ratio[1] // stem.patch_size[1]


def _to_timm(state: dict[str, Tensor], backbone: Any, with_positions: bool) -> dict[str, Tensor]:
    """Converts layouts that timm knows (DINOv2, CLIP, DeiT III, Meta's DINOv3, …) by timm's own function.

    Args:
        with_positions: whether timm resamples the position embedding, too: of RADIO, whose grid it also crops.
    """
    stem = SimpleNamespace(pos_embed=None, patch_embed=backbone.patch_embed, head=backbone.head)
    with torch.no_grad():
        if isinstance(backbone, swin_transformer.SwinTransformer):
            return swin_transformer.checkpoint_filter_fn(dict(state), backbone)
        if isinstance(backbone, eva.Eva):
            stem.get_parameter = backbone.get_parameter
            with contextlib.redirect_stdout(io.StringIO()):  # timm prints each bias that it leaves out
                converted = eva.checkpoint_filter_fn(dict(state), stem)
            return converted | _left_out_biases(state, converted)
        if isinstance(backbone, cait.Cait):
            return cait.checkpoint_filter_fn(dict(state), backbone)
        target = backbone if with_positions else stem
        return vision_transformer.checkpoint_filter_fn(dict(state), target, adapt_layer_scale=True)


def _left_out_biases(state: dict[str, Tensor], converted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases of query and value in Meta's DINOv3 that timm leaves out where the backbone has none, unless they are 0.

    Those of keys are multiplied by 0 there.
    """
    if "storage_tokens" not in state:
        return {}
    left = {name: value for name, value in state.items() if name.endswith("attn.qkv.bias") and value.ndim == 1}
    left = {name: value for name, value in left.items() if name.replace("qkv.bias", "q_bias") not in converted}
    return {name: value for name, value in left.items() if any(part.any() for part in value.chunk(3)[::2])}


def check_finite(state: dict[str, Tensor], source: str) -> None:
    """Raises InputError at the first tensor with NaN or infinite values, or with integers in place of weights."""
    for name, value in state.items():
        if re.search(r"num_batches_tracked$", name):
            continue
        if not value.is_floating_point():
            raise InputError(
                f"weights from {source}: {escape(name)} is of {value.dtype}, as in a quantized file: expected "
                "floating-point numbers"
            )
        if bad := int((~torch.isfinite(value.float())).sum()):
            raise InputError(
                f"weights from {source}: {bad:,} of the {value.numel():,} values of {escape(name)} are NaN or "
                "infinite: the training that wrote them diverged, or the file is damaged; take another file, such as "
                "an earlier checkpoint"
            )
