"""Error messages for files that do not fit a backbone: counts, three names of each kind, and the likely reason."""

import re
from collections.abc import Iterable
from typing import Any

import timm
from torch import Tensor

from dual_cross_attention.text import escape
from dual_cross_attention.weights.fitting import Fit, blocks_of

MAX_LENGTH = 600
"""Largest length of a message, in characters."""
EXAMPLES = 3
SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
"""(width, depth) of ViTs with a name."""
OTHERS = {
    "a Swin Transformer": r"relative_position_bias_table|layers\.\d+\.blocks\.",
    "a BEiT or EVA": r"rel_pos_bias|\.attn\.q_bias|\.gamma_\d$|\.rope\.",
    "a ConvNeXt": r"stages\.\d+\.(blocks\.)?\d+\.(conv_dw|dwconv|gamma)|downsample_layers\.",
    "a ResNet": r"layer[1-4]\.\d+\.conv\d\.|(^|\.)bn1\.running_mean",
}
HEAD = re.compile(r"(^|\.)(head|heads|fc|classifier|last_layer|neck)(\.|_|$)|^(weight|bias)$")
SEPARATE = {
    "Hugging Face transformers": r"encoder\.layer\.\d+\.attention\.",
    "torchvision": r"encoder_layer_\d+\.",
    "MMPretrain": r"(^|\.)layers\.\d+\.(ln1|attn\.qkv)\.",
}
"""Other libraries with a ViT of other names."""


def refusal(source: str, given: Fit, names: Iterable[str], backbone: Any, model: str | None = None) -> str:
    """The message of a file that does not fit, of `MAX_LENGTH` characters at most.

    Args:
        source: the file, in words.
        given: the part of it that fits best.
        names: all of the tensors in that part, as in the file.
        backbone: that it is to fill.
        model: the backbone that the file is of, where a run of this project wrote it.
    """
    total = len(given.fitting) + len(given.missing) + len(given.shapes)
    source = shortened(source)
    ours = f"the file is of a run with {model:.150}" if model else None
    is_swin = hasattr(backbone, "layers")  # what follows are reasons against plain ViTs
    reason = ours or (None if is_swin else _other_model(list(names)) or _other_vit(given, backbone))
    reason = f"; likely reason: {reason}" if reason else ""
    for examples, width in ((EXAMPLES, 60), (EXAMPLES, 30), (2, 30), (1, 30), (1, 12)):
        lists = [
            f"{len(found)} {word} [{_listed(found, examples, width)}]"
            for word, found in (
                ("missing", given.missing),
                ("unexpected", given.unexpected),
                ("of another shape", given.shapes),
            )
            if found
        ]
        message = (
            f"weights from {source} do not fit the backbone {_architecture(backbone)}: {len(given.fitting)} of {total} "
            f"tensors fit; {'; '.join(lists)}{reason}"
        )
        if len(message) <= MAX_LENGTH:
            break
    return message[:MAX_LENGTH]


def shortened(source: str) -> str:
    """Shortens a long path to its end."""
    return source if len(source) <= 200 else f"…{source[-199:]}"


def _listed(names: list[str], examples: int, width: int) -> str:
    shown = [escape(name) for name in names[:examples]]
    shown = [name if len(name) <= width else f"{name[: width - 1]}…" for name in shown]
    return ", ".join(shown) + (", …" if len(names) > examples else "")


def _other_model(names: list[str]) -> str | None:
    """The reason, if the file is not of a plain ViT with timm's names."""
    if any("lora_" in name for name in names):
        return "LoRA adapters, which need their backbone: merge them into it first"
    for library, pattern in SEPARATE.items():
        if any(re.search(pattern, name) for name in names):
            split = "with separate query, key and value, " if any("query" in name for name in names) else ""
            return f"a ViT as {library} names it, {split}which is not read: take timm's file of the same model"
    for model, pattern in OTHERS.items():
        if any(re.search(pattern, name) for name in names) and not any("cls_token" in name for name in names):
            return f"a file of {model}, not of a plain ViT"
    if names and all(HEAD.search(name) for name in names):
        return "a head alone, without a backbone"
    return None


def _other_vit(given: Fit, backbone: Any) -> str | None:
    """The reason, if the file is of a ViT with timm's names."""
    state = given.state
    if not given.fitting and not _depth(state):
        return "names that no plain ViT of timm has"
    width, depth, patch = _width(state), _depth(state), (given.patch or (16, 16))[0]
    architecture = _architecture(backbone)
    size = SIZES.get((width, depth))
    named = {name.split(".")[0] for name in (*given.missing, *given.unexpected)}
    for names, reason in (
        (given.unexpected, "a file of a CaiT, which has class-attention layers"),
        (given.missing, "the backbone is a CaiT with class-attention layers, the file has none"),
    ):
        if any(name.startswith("blocks_token_only.") for name in names):
            return reason
    if "dist_token" in given.unexpected:
        tokens = f"{state['pos_embed'].shape[1]} position tokens: " if _is_embedding(state) else ""
        return f"{tokens}a distilled file{_take(f'deit_{size}_distilled_patch{patch}_224')}"
    if "dist_token" in given.missing:
        return f"the file is not distilled{_take(architecture.replace('_distilled', ''))}"
    if "reg_token" in given.unexpected:
        count = state["reg_token"].shape[1] if state["reg_token"].ndim == 3 else "?"
        return f"a file with {count} register tokens{_take(f'vit_{size}_patch{patch}_reg{count}_dinov2')}"
    if "reg_token" in given.missing:
        return "the backbone has register tokens, the file has none"
    blocks = len(blocks_of(backbone))
    if (width, depth) != (backbone.embed_dim, blocks) and width and depth:
        other = re.sub(r"_(tiny|small|base|large|huge)_patch\d+", f"_{size}_patch{patch}", architecture)
        return (
            f"the file is of width {width} and depth {depth}, the backbone of {backbone.embed_dim} and "
            f"{blocks}{_take(other, f'vit_{size}_patch{patch}_224') if size else ''}"
        )
    for part, meaning in (("ls1", "layer scale, as DINOv2 and DeiT III"), ("attn.q_norm", "norms of query and key")):
        for names, has in ((given.unexpected, "the file has"), (given.missing, "the backbone has")):
            if any(f".{part}." in name for name in names):
                return f"{has} {meaning}, the other has not"
    if "norm_pre" in named:
        return "a norm before the first block, as CLIP: the other has none"
    if any(name.startswith("attn_pool.") for name in given.unexpected):
        return 'the file has an attention pool, as SigLIP: --backbone_kwargs \'{"global_pool": "map"}\' takes it'
    if any(name.startswith("attn_pool.") for name in given.missing):
        return "the backbone has an attention pool (global_pool map), the file has none"
    if any(name.startswith("fc_norm.") for name in given.unexpected):
        return (
            "the file was trained with average pooling (fc_norm in place of norm), not with a class token: "
            '--backbone_kwargs \'{"global_pool": "avg"}\' takes it'
        )
    if any(name.startswith("fc_norm.") for name in given.missing):
        return (
            "the backbone pools its tokens and norms the mean (fc_norm), the file norms the tokens: "
            '--backbone_kwargs \'{"global_pool": "token"}\' takes its class token'
        )
    if any(name.endswith("attn.qkv.bias") for name in given.unexpected):
        return "the file has biases of query and value, the backbone has none: take a --backbone that ends in _qkvb"
    if given.missing and all(name.endswith("attn.qkv.bias") for name in given.missing):
        return "attention without biases of query, key and value"
    return None


def _take(*architectures: str) -> str:
    known = next((each for each in architectures if timm.is_model(each)), None)
    return f"; take --backbone {known}" if known else ""


def _architecture(backbone: Any) -> str:
    return str((backbone.pretrained_cfg or {}).get("architecture") or type(backbone).__name__)


def _is_embedding(state: dict[str, Tensor]) -> bool:
    return "pos_embed" in state and state["pos_embed"].ndim == 3


def _width(state: dict[str, Tensor]) -> int | None:
    norm = state.get("blocks.0.norm1.weight")
    return norm.shape[0] if norm is not None and norm.ndim == 1 else None


def _depth(state: dict[str, Tensor]) -> int:
    return len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))})
