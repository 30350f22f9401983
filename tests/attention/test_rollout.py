"""Rollout of one row against the whole matrix product, in float64."""

import math

import pytest
import torch

from dual_cross_attention import attention_rollout


def rollout_by_matrices(queries, keys):
    """Ŝ = S̄_L · … · S̄₁, literally: (B, tokens) of its first row."""
    product = None
    for query, key in zip(queries, keys, strict=True):
        scores = query.double() @ key.double().transpose(-2, -1) / math.sqrt(query.shape[-1])
        attention = scores.softmax(-1).mean(1)
        mixed = 0.5 * attention + 0.5 * torch.eye(attention.shape[-1], dtype=torch.float64)
        product = mixed if product is None else mixed @ product
    return product[:, 0]


@pytest.fixture
def layers():
    torch.manual_seed(0)
    shape = (2, 3, 50, 16)
    return [3 * torch.randn(shape) for _ in range(5)], [torch.randn(shape) for _ in range(5)]


# One row of one head; 7 rows of one head; 2 whole heads of 6 (and a last, smaller group with 4); everything at once.
@pytest.mark.parametrize("max_scores", [1, 50 * 7, 50 * 50 * 2, 50 * 50 * 4, 10**9, None])
def test_equals_the_matrix_product(layers, max_scores):
    row = attention_rollout(*layers, max_scores=max_scores)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row.double(), rollout_by_matrices(*layers), atol=1e-6, rtol=0)
    torch.testing.assert_close(row.sum(-1), torch.ones(2))


def test_one_layer_is_its_own_first_row(layers):
    queries, keys = layers[0][:1], layers[1][:1]
    torch.testing.assert_close(
        attention_rollout(queries, keys).double(), rollout_by_matrices(queries, keys), atol=1e-6, rtol=0
    )


def test_reads_views_of_a_fused_projection():
    torch.manual_seed(0)
    layers = [
        torch.randn(2, 50, 3, 3, 16).permute(2, 0, 3, 1, 4) for _ in range(3)
    ]  # (qkv, B, heads, tokens, head_dim)
    queries, keys = [qkv[0] for qkv in layers], [qkv[1] for qkv in layers]
    row = attention_rollout(queries, keys, max_scores=50 * 7)
    torch.testing.assert_close(row.double(), rollout_by_matrices(queries, keys), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [1, 4])
def test_last_query_may_hold_its_first_tokens_only(layers, rows):
    queries, keys = layers
    shortened = [*queries[:-1], queries[-1][:, :, :rows]]
    assert torch.equal(attention_rollout(shortened, keys), attention_rollout(queries, keys))


def test_order_of_layers_matters(layers):
    """The first layer touches the input: the reversed list is another rollout."""
    forward = attention_rollout(*layers)
    backward = attention_rollout(layers[0][::-1], layers[1][::-1])
    assert (forward - backward).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_accumulates_in_float32_under_autocast(layers, dtype):
    """Rounded inputs are all that is lost: from there on the result is the exact one of those inputs."""
    queries, keys = ([tensor.to(dtype) for tensor in tensors] for tensors in layers)
    with torch.autocast("cpu", torch.bfloat16):
        row = attention_rollout(queries, keys)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row.double(), rollout_by_matrices(queries, keys), atol=1e-6, rtol=0)


def test_no_gradient(layers):
    queries, keys = ([tensor.requires_grad_() for tensor in tensors] for tensors in layers)
    assert not attention_rollout(queries, keys).requires_grad


def test_nothing_of_tokens_by_tokens_is_made():
    """Peak memory stays linear in the number of tokens: no tensor larger than what was allowed."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    tokens, heads = 600, 2
    queries = [torch.randn(1, heads, tokens, 8) for _ in range(2)]
    with Watch():
        attention_rollout(queries, queries, max_scores=heads * tokens * 16)
    assert largest <= heads * tokens * 16 < heads * tokens * tokens


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ([], []),
        ([torch.zeros(1, 2, 5, 4)], []),
        ([torch.zeros(1, 2, 6, 4)], [torch.zeros(1, 2, 5, 4)]),
        ([torch.zeros(1, 2, 0, 4)], [torch.zeros(1, 2, 5, 4)]),
        ([torch.zeros(1, 2, 5, 3)], [torch.zeros(1, 2, 5, 4)]),
        ([torch.zeros(1, 1, 5, 4)], [torch.zeros(1, 2, 5, 4)]),
        ([torch.zeros(2, 5, 4)], [torch.zeros(2, 5, 4)]),
        ([torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 5, 4)], [torch.zeros(1, 2, 5, 4)] * 2),
        ([torch.zeros(1, 2, 5, 4)] * 2, [torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 6, 4)]),
    ],
)
def test_layers_that_do_not_match_are_refused(queries, keys):
    with pytest.raises(ValueError, match="expected"):
        attention_rollout(queries, keys)
