"""Pretrained weights into a timm backbone: fetched by timm, or from a file that never runs code."""

import logging
from pathlib import Path

import timm
import torch
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from dual_cross_attention.errors import InputError
from dual_cross_attention.messages import shown
from dual_cross_attention.models.archives import check_archive, npz_shapes

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
HEADS = ("head.", "head_dist.")
NOT_IN_NPZ = ("reg_token", "dist_token", "norm_pre", ".ls1.", ".ls2.", ".q_norm.", ".k_norm.")


def fetch_imagenet_weights(backbone: VisionTransformer, name: str) -> None:
    """timm's published weights for `name`, fetched once and cached.

    Raises:
        InputError: timm has none, or they cannot be fetched from here.
    """
    if not timm.is_model_pretrained(name):
        raise InputError(f"timm has no published weights for '{name}': use --weights none, or a path to a file")
    try:
        state = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # any hub or network failure means the same to the user
        raise InputError(
            f"timm could not fetch the weights of '{name}' ({_first_line(error)}): check the network, or "
            "give a file with --weights PATH (.safetensors, .pth, .npz), or train from scratch with --weights none"
        ) from error
    _load(backbone, state, f"timm's {name}")


def load_weights(backbone: VisionTransformer, path: str | Path) -> None:
    """A checkpoint file into the backbone; position and patch embeddings are interpolated to its size.

    Args:
        path: `.safetensors`; `.pth`, `.pt`, `.bin` (read with `weights_only=True`: nothing in it is executed); or
            Google's `.npz` (as `ViT-B_16.npz`). A head of another width is left out, and a log line says so.

    Raises:
        InputError: no such file, not readable, or any other key or shape that does not fit (all are listed).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at '{path}': expected imagenet, none, or a file ({', '.join(SUFFIXES)})")
    if path.suffix not in SUFFIXES:
        raise InputError(f"weights '{path}' end in '{path.suffix}': expected one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix != ".safetensors":
            check_archive(path)
        if path.suffix == ".npz":
            _load_npz(backbone, path)
            return
        state = load_state_dict(str(path), use_ema=True, weights_only=True)
    except InputError:
        raise
    except Exception as error:  # what readers raise on damaged or hostile bytes is not limited to any list of types
        if "weights_only=True blocked" in str(error):
            raise InputError(
                f"cannot read weights '{path}': it holds more than tensors, and what else is in it could run code, so "
                "nothing of it was run; expected a state dict of tensors: save that alone, or as .safetensors"
            ) from error
        raise InputError(f"cannot read weights '{path}': {_first_line(error)}") from error
    _load(backbone, state, str(path))


def _load(backbone: VisionTransformer, state: dict[str, Tensor], source: str) -> None:
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"weights from {source}: expected a state dict of tensors, got something else")
    _check_tensors(state, source)
    try:
        state = checkpoint_filter_fn(state, backbone, adapt_layer_scale=True)
    except Exception as error:  # it takes timm's own shapes for granted
        raise InputError(f"weights from {source} do not fit the backbone: {_first_line(error)}") from error
    expected = {key: value.shape for key, value in backbone.state_dict().items()}

    left_out = sorted(
        key
        for key in set(state) | set(expected)
        if key.startswith(HEADS) and (key not in state or expected.get(key) != state[key].shape)
    )
    state = {key: value for key, value in state.items() if key not in left_out}
    missing = sorted(set(expected) - set(state) - set(left_out))
    unexpected = sorted(set(state) - set(expected))
    shapes = sorted(
        f"{key} {tuple(state[key].shape)} for {tuple(expected[key])}"
        for key in set(state) & set(expected)
        if state[key].shape != expected[key]
    )
    if missing or unexpected or shapes:
        raise InputError(
            f"weights from {source} do not fit the backbone: "
            f"missing [{', '.join(missing)}]; unexpected [{', '.join(unexpected)}]; other shape [{', '.join(shapes)}]"
        )
    backbone.load_state_dict(state, strict=False)
    logger.info("weights: %s%s", source, f"; left out, trained afresh: {', '.join(left_out)}" if left_out else "")


def _check_tensors(state: dict[str, Tensor], source: str) -> None:
    """Raises InputError unless every tensor has the numbers that it claims: few bytes can claim billions of them."""
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(
                f"weights from {source}: expected tensors with all of their numbers in the file, but "
                f"{shown(name)} claims the shape {shown(tuple(tensor.shape))} without"
            )


def _load_npz(backbone: VisionTransformer, path: Path) -> None:
    """timm reads the JAX layout, but not what does not fit: other depths and heads would go by without a word."""
    shapes = {name.removeprefix("opt/target/"): shape for name, shape in npz_shapes(path).items()}
    blocks = {name.split("/")[1] for name in shapes if name.startswith("Transformer/encoderblock_")}
    query = next((shape for name, shape in shapes.items() if name.endswith("/query/kernel")), None)
    attention = backbone.blocks[0].attn
    expected = (backbone.embed_dim, attention.num_heads, attention.head_dim)
    absent = [name for name in backbone.state_dict() if any(part in name for part in NOT_IN_NPZ)]
    if len(blocks) != len(backbone.blocks) or query != expected or absent:
        raise InputError(
            f"weights from {path} do not fit the backbone: {len(blocks)} blocks for {len(backbone.blocks)}; "
            f"query kernels {query} for {expected}; missing [{', '.join(absent)}]"
        )
    backbone.load_pretrained(str(path))
    has_head = shapes.get("head/bias") == (backbone.num_classes,)
    logger.info("weights: %s%s", path, "" if has_head else "; left out, trained afresh: head.bias, head.weight")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
