"""Matching patches of two images, against a written-out softmax and cosine."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from dual_cross_attention import InputError
from dual_cross_attention.explanation.matching import best_pairs, match_scores
from tests.explanation.attention_oracle import attention_matrices, rollout_row
from tests.helpers import random_images, tiny_model

SIZE = (32, 16)
PATCHES = 8


def last_queries_and_keys(model, images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, heads, T, d) each, float64, as timm computes them."""
    backbone, found = copy.deepcopy(model.backbone).double(), []
    attention = backbone.blocks[-1].attn
    for norm in (attention.q_norm, attention.k_norm):
        norm.register_forward_hook(lambda _, inputs, out: found.append(out))
    with torch.no_grad():
        backbone(images.double())
    return found[0], found[1]


def test_pwca_is_the_written_out_joint_softmax():
    model, images = tiny_model("sa_only", img_size=SIZE, sharpness=4).eval(), random_images(4, SIZE)
    found = match_scores(model, images[:2], images[2:], "pwca")
    queries, keys = last_queries_and_keys(model, images)
    heads, tokens, d = queries.shape[1:]

    def attention_to_other(own: int, other: int, patch: int) -> np.ndarray:
        """Of a patch of image `own`, to each patch of image `other`, mean over heads."""
        rows = []
        for head in range(heads):
            query = queries[own, head, 1 + patch].numpy()
            both = [keys[own, head, token].numpy() for token in range(tokens)]
            both += [keys[other, head, token].numpy() for token in range(tokens)]
            exponentials = np.exp([query @ key / np.sqrt(d) for key in both])
            rows.append(exponentials[tokens + 1 :] / exponentials.sum())
        return np.mean(rows, axis=0)

    for pair in range(2):
        first, second = pair, 2 + pair
        there = np.stack([attention_to_other(first, second, patch) for patch in range(PATCHES)])
        back = np.stack([attention_to_other(second, first, patch) for patch in range(PATCHES)])
        np.testing.assert_allclose(found[pair].numpy(), (there + back.T) / 2, rtol=1e-4, atol=1e-7)


def test_cosine_is_weighted_by_the_rollout_of_both():
    model, images = tiny_model("full", img_size=SIZE, sharpness=4).eval(), random_images(2, SIZE)
    found = match_scores(model, images[:1], images[1:], "cosine")[0]
    matrices, tokens = attention_matrices(model.backbone, images)
    with torch.no_grad():
        normed = copy.deepcopy(model.backbone.norm).double()(tokens)[:, 1:]
    rollout = rollout_row(matrices)[:, 1:]
    for i, j in itertools.product(range(PATCHES), repeat=2):
        one, other = normed[0, i], normed[1, j]
        cosine = (one @ other / (one.norm() * other.norm())).clamp(min=0)
        assert float(found[i, j]) == pytest.approx(float(cosine * rollout[0, i] * rollout[1, j]), rel=1e-3, abs=1e-7)


def test_an_image_with_itself_is_symmetric():
    model, image = tiny_model("sa_glca", img_size=SIZE, sharpness=4).eval(), random_images(1, SIZE)
    for method in ("pwca", "cosine"):
        scores = match_scores(model, image, image, method)[0]
        torch.testing.assert_close(scores, scores.T)


def test_best_pairs_take_each_patch_once():
    scores = np.random.default_rng(0).random((5, 4))
    found = best_pairs(scores, 10)
    left, expected = scores.copy(), []
    for _ in range(4):  # greedily: the largest of what is left
        row, column = np.unravel_index(left.argmax(), left.shape)
        expected.append([row, column])
        left[row], left[:, column] = -1, -1
    assert found.tolist() == expected
    assert best_pairs(scores, 2).tolist() == expected[:2]


def test_another_method_is_refused():
    with pytest.raises(InputError, match="pwca or cosine"):
        match_scores(tiny_model("sa_only").eval(), random_images(1), random_images(1), "both")
