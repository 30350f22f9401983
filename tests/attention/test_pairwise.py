"""PWCA against a loop over pairs with an explicit softmax."""

import math

import pytest
import torch
from timm.models.vision_transformer import Attention

from dual_cross_attention import InputError
from dual_cross_attention.attention import sample_distractors, stacked_attention


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_a_loop_over_pairs(clean, shared):
    torch.manual_seed(0)
    batch, heads, tokens, head_dim = 5, 2, 7, 4
    rows = batch if shared else 2 * batch
    query, key, value = (torch.randn(rows, heads, tokens, head_dim, dtype=torch.float64) for _ in range(3))
    distractors = torch.tensor([3, 0, 4, 2, 1])
    out = stacked_attention(Attention(heads * head_dim, heads), query, key, value, distractors, clean)
    out = out.unflatten(-1, (heads, head_dim)).transpose(1, 2)  # heads apart again
    if shared:  # as in the first block, where both streams have the same tokens
        query, key, value = (tensor.repeat(2, 1, 1, 1) for tensor in (query, key, value))
    for i in range(batch):
        for h in range(heads):
            for t in range(tokens):
                # SA: the image's own tokens only
                scores = (key[i, h] @ query[i, h, t]) / math.sqrt(head_dim)
                weights = scores.exp() / scores.exp().sum()
                torch.testing.assert_close(out[i, h, t], weights @ value[i, h])
                # PWCA: one softmax over 2N scores
                target, other = batch + i, distractors[i] + (0 if clean else batch)
                both_keys = torch.cat([key[target, h], key[other, h]])
                both_values = torch.cat([value[target, h], value[other, h]])
                scores = (both_keys @ query[target, h, t]) / math.sqrt(head_dim)
                weights = scores.exp() / scores.exp().sum()
                torch.testing.assert_close(out[target, h, t], weights @ both_values)


@pytest.mark.parametrize("batch", [2, 3, 4, 7, 16])
def test_distractors_are_derangements(batch):
    torch.manual_seed(0)
    for _ in range(50):
        drawn = sample_distractors(batch)
        assert sorted(drawn.tolist()) == list(range(batch))
        assert (drawn != torch.arange(batch)).all()


def test_every_other_image_distracts_equally_often():
    torch.manual_seed(0)
    batch, draws = 5, 8000
    counts = torch.zeros(batch, batch)
    for _ in range(draws):
        counts[torch.arange(batch), sample_distractors(batch)] += 1
    off_diagonal = counts[~torch.eye(batch, dtype=torch.bool)] / draws
    assert counts.diagonal().sum() == 0
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, 0.25), atol=0.02, rtol=0)


def test_distractors_follow_the_seed():
    torch.manual_seed(1)
    first = sample_distractors(16)
    second = sample_distractors(16)
    torch.manual_seed(1)
    assert torch.equal(first, sample_distractors(16))
    assert not torch.equal(first, second)  # drawn anew every step


@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_without_a_pair_is_refused(batch):
    with pytest.raises(InputError, match="batch_size >= 2"):
        sample_distractors(batch)


@pytest.mark.parametrize(("identities", "each"), [(16, 4), (4, 4), (2, 4), (3, 2)])
def test_same_identity_distractors_do_not_dominate(identities, each):
    """Uniform circles would have (each - 1) / (batch - 1) of them: 43 % of a batch of 2 identities x 4."""
    torch.manual_seed(0)
    batch = identities * each
    labels = torch.arange(identities).repeat_interleave(each)[torch.randperm(batch)]
    same, pairs = 0, set()
    for _ in range(200):
        drawn = sample_distractors(batch, identities=labels)
        assert sorted(drawn.tolist()) == list(range(batch))
        assert (drawn != torch.arange(batch)).all()
        same += (labels[drawn] == labels).sum().item()
        pairs |= {*enumerate(drawn.tolist())}
    assert same / (200 * batch) < 0.55 * (each - 1) / (batch - 1)
    others = {(i, j) for i in range(batch) for j in range(batch) if labels[i] != labels[j]}
    assert len(pairs & others) > 0.9 * len(others)  # any image of another identity comes up


def test_distractors_of_one_identity_are_a_derangement_still():
    drawn = sample_distractors(4, identities=torch.zeros(4))
    assert sorted(drawn.tolist()) == [0, 1, 2, 3] and (drawn != torch.arange(4)).all()
