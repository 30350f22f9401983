"""Finds candidates for a backbone in a weights file: nested dicts (`model`, `state_dict`, `teacher`) and prefixes
(`module.`)."""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import Tensor

MAX_DEPTH, MAX_DICTS, MAX_VISITED, MAX_PREFIXES = 4, 200, 10_000, 16
ANCHORS = ("patch_embed.proj.weight", "blocks.0.norm1.weight", "cls_token")
"""Tensor names of every timm ViT; the text before one is a prefix."""
PREFERRED = ("", "state_dict", "model", "model_state_dict", "net", "network", "params", "module", "backbone")
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts that torch.compile, FSDP and activation checkpointing insert into names."""


@dataclass
class Candidate:
    """A part of a file that may be a backbone.

    Args:
        key: nested dicts to it, "a.b"; "" is the top of the file.
        prefix: what was removed in front of each name, such as "module.".
        state: tensors of names that had the prefix, without it.
        outside: the others of the same dict.
    """

    key: str
    prefix: str
    state: dict[str, Tensor]
    outside: dict[str, Tensor]

    @property
    def name(self) -> str:
        """As `--weights_key` takes it."""
        return ".".join(part for part in (self.key, self.prefix.rstrip(".")) if part)

    @property
    def is_ema(self) -> bool:
        """Whether it is an exponential moving average of weights, as a self-distillation's teacher is."""
        return any(part == "teacher" or re.search(r"(?i)(?<![a-z])ema(?![a-z])", part) for part in self.name.split("."))

    @property
    def rank(self) -> int:
        """Lower is preferred, of two candidates that fit equally well."""
        if self.is_ema:
            return -1
        first = self.name.split(".")[0]
        return PREFERRED.index(first) if first in PREFERRED else len(PREFERRED) + (first == "student")


def list_candidates(tree: Any) -> list[Candidate]:
    """Yields all candidates: each dict with every prefix of a ViT's names in it."""
    return [candidate for key, tensors in _dicts(tree) for candidate in _under_prefixes(key, tensors)]


def select(candidates: list[Candidate], key: str) -> list[Candidate]:
    """Returns the candidates that `--weights_key` selects: the dict or prefix itself, or those nested in it."""
    return [each for each in candidates if each.key == key or f"{each.name}.".startswith(f"{key}.")]


def _dicts(tree: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields nested dicts with tensors, outermost first; other values are skipped."""
    left, visited, found = deque([("", tree, 0)]), 0, 0
    while left and found < MAX_DICTS and visited < MAX_VISITED:
        key, node, depth = left.popleft()
        visited += 1
        if not isinstance(node, dict):
            continue
        tensors = {name: value for name, value in node.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if tensors:
            found += 1
            yield key, tensors
        if depth < MAX_DEPTH:
            inner = [(name, value) for name, value in node.items() if isinstance(name, str) and isinstance(value, dict)]
            left += [(f"{key}.{name}".lstrip("."), value, depth + 1) for name, value in inner]


def _under_prefixes(key: str, tensors: dict[str, Tensor]) -> Iterator[Candidate]:
    tensors = {WRAPPERS.sub("", name): value for name, value in tensors.items()}
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(min(tensors), max(tensors), strict=False))
    common = "".join(character for character, _ in alike)
    prefixes = {"": None, common[: common.rfind(".") + 1]: None}
    for name in tensors:
        for anchor in ANCHORS:
            if name.endswith(f".{anchor}"):
                prefixes[name[: -len(anchor)]] = None
    for prefix in list(prefixes)[:MAX_PREFIXES]:
        state = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        outside = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
        yield Candidate(key, prefix, state, outside)
