"""GLCA against an explicit block, token by token."""

import copy
import math

import pytest
import torch
from timm.models.vision_transformer import Block
from torch.nn import functional as F

from dual_cross_attention.attention import GlobalLocalBlock, select_local


def explicit_block(block, tokens, asking):
    """One image, float64 loops: tokens (N, D), the indices that ask → (len(asking), D)."""
    attention, dim = block.attn, tokens.shape[-1]
    heads, head_dim = attention.num_heads, dim // attention.num_heads
    normed = F.layer_norm(tokens, (dim,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
    query, key, value = (
        normed @ attention.qkv.weight[i * dim : (i + 1) * dim].T + attention.qkv.bias[i * dim : (i + 1) * dim]
        for i in range(3)
    )
    rows = []
    for token in asking:
        merged = []
        for head in range(heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            scores = key[:, part] @ query[token, part] / math.sqrt(head_dim)
            weights = scores.exp() / scores.exp().sum()
            merged.append(weights @ value[:, part])
        row = tokens[token] + attention.proj.weight @ torch.cat(merged) + attention.proj.bias
        hidden = F.layer_norm(row, (dim,), block.norm2.weight, block.norm2.bias, block.norm2.eps)
        hidden = F.gelu(block.mlp.fc1.weight @ hidden + block.mlp.fc1.bias)
        rows.append(row + block.mlp.fc2.weight @ hidden + block.mlp.fc2.bias)
    return torch.stack(rows)


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block(dim=24, num_heads=3, qkv_bias=True).double().eval()


@pytest.mark.parametrize("prefix", [1, 2])
def test_equals_an_explicit_block(block, prefix):
    tokens = torch.randn(3, prefix + 10, 24, dtype=torch.float64)
    local = torch.tensor([[4, 0, 9], [1, 2, 3], [9, 8, 0]])
    out = GlobalLocalBlock(block, prefix)(tokens, local)
    for i in range(3):
        asking = [*range(prefix), *(prefix + int(j) for j in local[i])]
        torch.testing.assert_close(out[i], explicit_block(block, tokens[i], asking))


def test_all_tokens_local_is_the_plain_block(block):
    tokens = torch.randn(2, 11, 24, dtype=torch.float64)
    everyone = torch.arange(10).expand(2, -1)
    torch.testing.assert_close(GlobalLocalBlock(block, 1)(tokens, everyone), block(tokens))


def test_tokens_that_do_not_ask_are_still_read(block):
    """Keys and values come from all tokens: changing one that is not local changes the answer."""
    glca = GlobalLocalBlock(block, 1)
    tokens = torch.randn(1, 11, 24, dtype=torch.float64)
    local = torch.tensor([[0, 1]])
    changed = tokens.clone()
    changed[0, 8] += torch.randn(24, dtype=torch.float64)
    assert (glca(tokens, local)[0, 0] - glca(changed, local)[0, 0]).abs().max() > 1e-4


def test_no_token_that_does_not_ask_passes_the_mlp(block):
    """Only prefix + local rows reach the output projection and the MLP."""
    seen = {}
    block = copy.deepcopy(block)
    for name in ("attn.proj", "mlp.fc1"):
        module = block.get_submodule(name)
        module.register_forward_hook(lambda _, inputs, __, name=name: seen.__setitem__(name, inputs[0].shape[1]))
    GlobalLocalBlock(block, 1)(torch.randn(1, 11, 24, dtype=torch.float64), torch.tensor([[0, 1, 5]]))
    assert seen == {"attn.proj": 4, "mlp.fc1": 4}


def test_select_local_takes_the_largest():
    rollout = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15], [0.5, 0.1, 0.2, 0.05, 0.15]])
    assert select_local(rollout, 0.4).tolist() == [[1, 3], [0, 2]]
    assert select_local(rollout, 0.01).shape == (2, 1)  # never none
    assert select_local(rollout, 1.0).shape == (2, 5)
    assert select_local(torch.rand(1, 784), 0.1).shape == (1, 78)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01])
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(ValueError, match="local ratio"):
        select_local(torch.rand(1, 10), ratio)
