"""The fused kernel against the matrix product in float64, in Triton's interpreter, and on a GPU against the chunks."""

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch

from dual_cross_attention import attention_rollout
from dual_cross_attention.attention import rollout

CASES = [  # tokens, heads, head_dim; blocks are of 64 queries and 64 keys
    (1, 1, 16),
    (64, 2, 64),
    (67, 3, 64),
    (130, 2, 80),
    (97, 1, 8),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def views_of_fused_projection(layers, batch, tokens, heads, head_dim, dtype, device="cpu"):
    """Queries and keys as a timm block has them: neighbors in memory, (B, heads, tokens, head_dim) only by strides."""
    generator = torch.Generator().manual_seed(0)
    fused = [torch.randn(batch, tokens, 3, heads, head_dim, generator=generator) for _ in range(layers)]
    fused = [qkv.to(device, dtype).permute(2, 0, 3, 1, 4) for qkv in fused]
    return [2 * qkv[0] if layer % 2 else qkv[0] for layer, qkv in enumerate(fused)], [qkv[1] for qkv in fused]


def rollout_by_matrices(queries, keys):
    """CLS's row of Ŝ = S̄_L · … · S̄₁, literally."""
    product = torch.eye(keys[0].shape[2], dtype=torch.float64)
    for query, key in zip(queries, keys, strict=True):
        scores = query.double() @ key.double().transpose(-2, -1) / math.sqrt(query.shape[-1])
        product = (0.5 * scores.softmax(-1).mean(1) + 0.5 * torch.eye(keys[0].shape[2])) @ product
    return product[:, 0]


def check_in_interpreter():
    """What the subprocess below runs: every case through the kernel alone."""
    from triton.runtime.interpreter import InterpreterBuilder, tl

    from dual_cross_attention.attention.rollout_kernel import row_times_attention

    plain_dot = InterpreterBuilder.create_dot

    def dot(self, left, right, *rest):
        """The interpreter keeps bfloat16 as its bits and would multiply those as integers."""
        if left.dtype.scalar == tl.bfloat16:
            left, right = (self.create_fp_ext(operand, tl.float32) for operand in (left, right))
        return plain_dot(self, left, right, *rest)

    InterpreterBuilder.create_dot = dot
    for dtype in DTYPES:
        for tokens, heads, head_dim in CASES:
            for layers in (1, 2):
                queries, keys = views_of_fused_projection(layers, 2, tokens, heads, head_dim, dtype)
                row = torch.eye(tokens)[:1].expand(2, tokens)
                row = 0.5 * row + 0.5 * row_times_attention(row[:, :1], queries[-1][:, :, :1], keys[-1])
                for query, key in zip(queries[-2::-1], keys[-2::-1], strict=True):
                    row = 0.5 * row + 0.5 * row_times_attention(row, query, key)
                expected = rollout_by_matrices(queries, keys)
                assert row.dtype == torch.float32
                error = (row - expected).abs().max().item()
                assert error < 1e-6, f"{dtype}, {tokens} tokens, {heads} × {head_dim}, {layers} layers: {error}"
    print("checked", len(DTYPES) * len(CASES) * 2)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernel_equals_the_matrix_product():
    """In a process of its own: Triton chooses between compiler and interpreter when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "checked 30\n"


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < rollout.KERNEL_CAPABILITY,
    reason="needs a GPU with tensor cores that Triton uses",
)
@pytest.mark.parametrize("dtype", rollout.KERNEL_DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [*CASES, (785, 3, 64), (1025, 12, 64)])
def test_kernel_equals_the_chunks(tokens, heads, head_dim, dtype, monkeypatch):
    from dual_cross_attention.attention import rollout_kernel

    assert rollout.kernel_runs(torch.device("cuda", 0), dtype, head_dim)  # tried before calls are counted
    calls = []
    kernel = rollout_kernel.row_times_attention
    monkeypatch.setattr(rollout_kernel, "row_times_attention", lambda *args: calls.append(1) or kernel(*args))
    queries, keys = views_of_fused_projection(3, 2, tokens, heads, head_dim, dtype, "cuda")
    fused = attention_rollout(queries, keys)
    assert len(calls) == 3, "the kernel was not taken"
    chunks = attention_rollout(queries, keys, max_scores=rollout.MAX_SCORES)
    torch.testing.assert_close(fused, chunks, atol=1e-6, rtol=0)
    assert torch.equal(fused, attention_rollout(queries, keys)), "not the same a second time"


class OnAmpere(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("dtypes", "head_dim", "capability", "taken"),
    [
        ((torch.bfloat16, torch.bfloat16), 64, (8, 0), True),
        ((torch.float16, torch.float16), 64, (9, 0), True),
        ((torch.float16, torch.float16), 64, (7, 5), False),
        ((torch.float32, torch.float32), 64, (9, 0), False),
        ((torch.bfloat16, torch.float32), 64, (9, 0), False),
        ((torch.bfloat16, torch.bfloat16), 256, (9, 0), False),
    ],
)
def test_inputs_that_use_the_kernel(dtypes, head_dim, capability, taken, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(rollout, "HAS_TRITON", True)
    monkeypatch.setattr(rollout, "kernel_runs", lambda *_: True)
    query, key = (torch.zeros(1, 1, 2, head_dim, dtype=dtype).as_subclass(OnAmpere) for dtype in dtypes)
    assert rollout.has_kernel(query, key) == taken
    assert not rollout.has_kernel(query.as_subclass(torch.Tensor), key)


def test_a_kernel_that_cannot_run_is_warned_of():
    rollout.kernel_runs.cache_clear()
    with pytest.warns(UserWarning, match="without its fused kernel"):
        assert not rollout.kernel_runs(torch.device("meta"), torch.bfloat16, 64)


if __name__ == "__main__":
    check_in_interpreter()
