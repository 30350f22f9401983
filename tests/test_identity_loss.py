"""The loss of a re-identification branch, against loops over the batch."""

import math

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer

from dual_cross_attention.losses import ReIDLoss, batch_hard_triplet


def literal(logits, features, identities, label_smoothing=0.0, margin=None):
    """Cross-entropy plus the triplet of each image's hardest pair, by the definition."""
    batch, classes = logits.shape
    total = 0.0
    for i in range(batch):
        log_probabilities = logits[i] - logits[i].exp().sum().log()
        target = torch.full((classes,), label_smoothing / classes, dtype=torch.float64)
        target[identities[i]] += 1 - label_smoothing
        total += -(target * log_probabilities).sum() / batch
        distances = [(features[i] - features[j]).square().sum().sqrt() for j in range(batch)]
        hardest = max(distances[j] for j in range(batch) if j != i and identities[j] == identities[i])
        nearest = min(distances[j] for j in range(batch) if identities[j] != identities[i])
        gap = hardest - nearest
        total += (math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin)) / batch
    return total


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("margin", [None, 0.3, 1.0])
def test_equals_the_loops(label_smoothing, margin):
    torch.manual_seed(0)
    identities = torch.tensor([0, 0, 0, 2, 2, 2, 4, 4, 4])
    logits, features = torch.randn(9, 5), torch.randn(9, 7)
    loss = ReIDLoss(label_smoothing, margin)(logits, features, identities)
    expected = literal(logits.double(), features.double(), identities, label_smoothing, margin)
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_images_without_loss_count_in_the_mean():
    """With a margin, most triplets of a trained model are satisfied: the mean is over all of them."""
    features = torch.tensor([[0.0], [0.1], [10.0], [11.0]])
    logits = torch.zeros(4, 2)
    # Hardest gaps: 0.1 - 10, 0.1 - 9.9, 1 - 9.9, 1 - 10.9; with margin 9: 0, 0, 0.1, 0.
    loss = ReIDLoss(margin=9.0)(logits, features, torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.log(2) + 0.1 / 4, rel=1e-5)


def test_half_precision_is_computed_in_full():
    torch.manual_seed(0)
    logits, features = torch.randn(8, 3).bfloat16(), torch.randn(8, 4).bfloat16()
    identities = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        loss = ReIDLoss()(logits, features, identities)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(literal(logits.double(), features.double(), identities)), rel=1e-5)


def test_repeated_images_have_finite_gradients():
    """Identities with few images repeat them: distance 0, where the root has no slope."""
    features = torch.zeros(4, 3, requires_grad=True)
    ReIDLoss()(torch.zeros(4, 2), features, torch.tensor([0, 0, 1, 1])).backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("margin", [None, 0.3])
@pytest.mark.parametrize("identities", [[0, 0, 1, 1, 2, 2, 0, 1], [0, 0, 0, 1, 2, 2, 3, 4]])
def test_triplet_and_its_gradient_are_those_of_pytorch_metric_learning(margin, identities):
    """The second batch has identities with a single image, which have no positive and thus no triplet."""
    torch.manual_seed(0)
    euclidean = LpDistance(normalize_embeddings=False)
    peer = TripletMarginLoss(margin or 0.0, smooth_loss=margin is None, distance=euclidean, reducer=MeanReducer())
    ours, theirs = (torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    identities = torch.tensor(identities)
    loss = batch_hard_triplet(ours, identities, margin)
    expected = peer(theirs, identities, BatchHardMiner(distance=euclidean)(theirs, identities))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_batch_of_one_identity_has_no_triplet():
    features = torch.randn(3, 4, requires_grad=True)
    loss = batch_hard_triplet(features, torch.zeros(3))
    loss.backward()
    assert loss == 0 and (features.grad == 0).all()
