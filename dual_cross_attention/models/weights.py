"""Pretrained weights into a timm backbone: fetched by timm, or from a file that never runs code."""

import logging
from pathlib import Path

import timm
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from dual_cross_attention.errors import InputError

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
HEADS = ("head.", "head_dist.")


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
        if path.suffix == ".npz":
            backbone.load_pretrained(str(path))  # timm's own reader of the JAX layout; it leaves out another head
            logger.info("weights: %s (a head of another width is left out)", path)
            return
        state = load_state_dict(str(path), use_ema=True, weights_only=True)
    except Exception as error:  # what readers raise on damaged or hostile bytes is not limited to any list of types
        raise InputError(f"cannot read weights '{path}': {_first_line(error)}") from error
    _load(backbone, state, str(path))


def _load(backbone: VisionTransformer, state: dict[str, Tensor], source: str) -> None:
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights from {source}: expected a state dict of tensors, got something else")
    state = checkpoint_filter_fn(state, backbone, adapt_layer_scale=True)
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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
