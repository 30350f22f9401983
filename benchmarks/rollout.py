"""Time and peak memory of attention rollout: CLS's row alone (`attention_rollout`) against the literal matrix product.

    python -m benchmarks.rollout --tokens 197 785 1025 --heads 3 12

Random queries and keys, views of fused projections as a timm block has them. Memory is what one call adds to the peak
of a fresh process that has so far made its inputs only.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import (
    add_flags,
    chosen_device,
    describe_machine,
    in_fresh_process,
    table,
    time_in_turns,
    write_json,
)
from dual_cross_attention import attention_rollout
from dual_cross_attention.devices import peak_memory_mb

Layers = list[Tensor]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--tokens", type=int, nargs="+", default=[197, 577, 785, 1025, 2305, 4097])
    parser.add_argument("--heads", type=int, nargs="+", default=[3, 12])
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)

    device, dtype = chosen_device(given)
    rows = {
        f"{tokens} tokens, {heads} heads": measure(tokens, heads, given)
        for heads in given.heads
        for tokens in given.tokens
    }
    setting = (
        f"{given.layers} layers, batch {given.batch_size}; {describe_machine(device, dtype)}; median of {given.repeats}"
    )
    print(f"{setting}\n\n{table(rows, 'size')}")
    write_json(given.json, setting=setting, rows=rows)
    return 0


def measure(tokens: int, heads: int, given: argparse.Namespace) -> dict[str, float]:
    """One row of the table; both variants must agree."""
    queries, keys = inputs(tokens, heads, given)
    results = [variant(queries, keys) for variant in VARIANTS.values()]
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
    functions = {name: partial(variant, queries, keys) for name, variant in VARIANTS.items()}
    seconds = time_in_turns(functions, queries[0].device, given.repeats)
    memory = {name: in_fresh_process(added_by, name, tokens, heads, given) for name in VARIANTS}
    return {
        **{f"{name} ms": 1e3 * seconds[name] for name in VARIANTS},
        "product / rollout": seconds["product"] / seconds["rollout"],
        **{f"{name} MiB": memory[name] for name in VARIANTS},
        "memory rollout / product": memory["rollout"] / memory["product"],
    }


def added_by(name: str, tokens: int, heads: int, given: argparse.Namespace) -> float:
    """How far one call lifts the peak above what stood there with the inputs made, in MiB."""
    VARIANTS[name](*inputs(16, heads, given))  # what the libraries take once, and keep, is not the method's
    queries, keys = inputs(tokens, heads, given)
    device = queries[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = peak_memory_mb(device)
    VARIANTS[name](queries, keys)
    return peak_memory_mb(device) - before


def inputs(tokens: int, heads: int, given: argparse.Namespace) -> tuple[Layers, Layers]:
    """Queries and keys of every layer, each (B, heads, tokens, head_dim), without a copy of either."""
    device, dtype = chosen_device(given)
    shape = (given.batch_size, tokens, 3, heads, given.head_dim)
    projected = [torch.randn(shape, device=device, dtype=dtype).permute(2, 0, 3, 1, 4) for _ in range(given.layers)]
    return [each[0] for each in projected], [each[1] for each in projected]


def product(queries: Layers, keys: Layers) -> Tensor:
    """The definition: every layer's attention matrix of all heads, their mean, and the product of all layers'."""
    result = None
    for query, key in zip(queries, keys, strict=True):
        scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)
        attention = scores.softmax(-1, dtype=torch.float32).mean(1)
        mixed = 0.5 * attention + 0.5 * torch.eye(attention.shape[-1], device=attention.device)
        result = mixed if result is None else mixed @ result
    return result[:, 0]


VARIANTS = {"product": product, "rollout": attention_rollout}


if __name__ == "__main__":
    sys.exit(main())
