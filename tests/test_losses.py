"""The loss formula, and the bounds of its weights."""

import math

import pytest
import torch

from dual_cross_attention import UncertaintyWeighting
from dual_cross_attention.losses import FixedWeighting


def test_formula():
    weighting = UncertaintyWeighting(["sa", "glca", "pwca"])
    with torch.no_grad():
        weighting.w.copy_(torch.tensor([0.3, -0.7, 1.5]))
    losses = {"pwca": torch.tensor(0.5), "sa": torch.tensor(2.0), "glca": torch.tensor(4.0)}  # order must not matter
    total, weights = weighting(losses)
    expected = 0.5 * (math.exp(-0.3) * 2 + math.exp(0.7) * 4 + math.exp(-1.5) * 0.5 + 0.3 - 0.7 + 1.5)
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert {name: round(w.item(), 4) for name, w in weights.items()} == {"w_sa": 0.3, "w_glca": -0.7, "w_pwca": 1.5}
    assert not any(w.requires_grad for w in weights.values())


def test_starts_at_zero_where_the_total_is_half_the_sum():
    weighting = UncertaintyWeighting(["sa", "glca"])
    total, weights = weighting({"sa": torch.tensor(3.0), "glca": torch.tensor(1.0)})
    assert total.item() == 2.0
    assert all(w.item() == 0 for w in weights.values())


@pytest.mark.parametrize("side", [-1, 1])
def test_never_leaves_the_bounds_and_comes_back(side):
    """A loss far from where w could balance it drives w to the bound, not further; another loss brings it back."""
    weighting = UncertaintyWeighting(["sa"], bound=2.0)
    optimizer = torch.optim.SGD(weighting.parameters(), lr=1.0)

    def step(loss):
        total, weights = weighting({"sa": torch.tensor(loss)})
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return weights["w_sa"].item()

    trace = [step(1000.0 if side > 0 else 0.0) for _ in range(30)]
    assert all(abs(w) <= 2.0 for w in trace)
    assert trace[-1] == pytest.approx(2.0 * side)
    back = [step(1.0) for _ in range(60)]
    assert abs(back[-1]) < 0.5  # w = log L = 0


def test_gradient_pulls_w_to_the_log_of_the_loss():
    weighting = UncertaintyWeighting(["sa"])
    with torch.no_grad():
        weighting.w.fill_(math.log(3.0))
    weighting({"sa": torch.tensor(3.0)})[0].backward()
    assert weighting.w.grad.abs().item() < 1e-6


def test_other_branches_are_refused():
    weighting = UncertaintyWeighting(["sa", "glca"])
    with pytest.raises(ValueError, match=r"losses of \['glca', 'sa'\]"):
        weighting({"sa": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="positive bound"):
        UncertaintyWeighting(["sa"], bound=0)


LOSSES = {"pwca": 0.5, "sa": 2.0, "glca": 4.0}


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("on", [["sa"], ["sa", "glca"], ["sa", "pwca"], ["sa", "glca", "pwca"]])
def test_only_branches_that_are_on_count_and_the_warm_up_scales_the_whole_term(on, scale):
    w = {"sa": 0.3, "glca": -0.7, "pwca": 1.5}
    weighting = UncertaintyWeighting(list(w))
    with torch.no_grad():
        weighting.w.copy_(torch.tensor(list(w.values())))
    losses = {branch: torch.tensor(LOSSES[branch]) for branch in on}
    scales = dict.fromkeys(on, 1.0) | ({"pwca": scale} if "pwca" in on else {})
    total, weights = weighting(losses, scales)
    expected = 0.5 * sum(scales[b] * (math.exp(-w[b]) * LOSSES[b] + w[b]) for b in on)
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert weights.keys() == {"w_sa", "w_glca", "w_pwca"} and weighting.absent == set(w) - set(on)
    total.backward()
    gradients = [0.5 * scales[b] * (1 - math.exp(-w[b]) * LOSSES[b]) if b in on else 0 for b in w]
    assert weighting.w.grad.tolist() == pytest.approx(gradients, rel=1e-5)


@pytest.mark.parametrize(("kind", "expected"), [("fixed", 0.5 * 6.5), ("sum", 6.5), ("mean", 6.5 / 3)])
def test_fixed_weights(kind, expected):
    weighting = FixedWeighting(["sa", "glca", "pwca"], kind)
    losses = {branch: torch.tensor(loss) for branch, loss in LOSSES.items()}
    total, weights = weighting(losses)
    assert total.item() == pytest.approx(expected, rel=1e-6) and not weights
    assert not list(weighting.parameters()) and not weighting.state_dict()
    if kind == "fixed":  # as the learned ones begin
        assert torch.equal(total, UncertaintyWeighting(["sa", "glca", "pwca"])(losses)[0])
    on = {"sa": torch.tensor(2.0), "pwca": torch.tensor(0.5)}
    halves = {"fixed": 0.5 * 2.25, "sum": 2.25, "mean": 2.25 / 1.5}
    assert weighting(on, {"sa": 1.0, "pwca": 0.5})[0].item() == pytest.approx(halves[kind], rel=1e-6)
    with pytest.raises(ValueError, match="expected the losses"):
        weighting(on)


def test_unknown_fixed_weights_are_refused():
    with pytest.raises(ValueError, match="fixed, sum or mean"):
        FixedWeighting(["sa"], "learned")
