"""Open-set identification against the definition in loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from dual_cross_attention.errors import InputError
from dual_cross_attention.metrics.identification import IdentificationScores, identity_distances
from dual_cross_attention.metrics.pair_probability import fit_same, log_loss, same_probability

PROBES, IMAGES, IDENTITIES = 40, 60, 7


def made(seed=0, cameras=3):
    """Features around the center of an identity, with junk, and probes of identities that are not enrolled."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(IDENTITIES + 2, 4))
    probe_ids, gallery_ids = random.integers(0, IDENTITIES + 2, PROBES), random.integers(-1, IDENTITIES, IMAGES)
    probe, gallery = (centers[ids] + 0.8 * random.normal(size=(len(ids), 4)) for ids in (probe_ids, gallery_ids))
    return probe, gallery, probe_ids, gallery_ids, *(random.integers(0, cameras, size) for size in (PROBES, IMAGES))


def literal_distance(probe, gallery, distance):
    if distance == "euclidean":
        return math.dist(probe, gallery)
    return 1 - sum(probe * gallery) / (math.hypot(*probe) * math.hypot(*gallery))


def literal_table(probe, gallery, probe_ids, gallery_ids, probe_cameras, gallery_cameras, distance, cross_only=False):
    """By probe: {identity: distance of its nearest image that the probe may find}; enrolled identities."""
    table = []
    for p in range(len(probe)):
        nearest = {}
        for g in range(len(gallery)):
            is_own = probe_ids[p] == gallery_ids[g]
            same_camera = probe_cameras is not None and probe_cameras[p] == gallery_cameras[g]
            if gallery_ids[g] >= 0 and not (same_camera and (is_own or cross_only)):
                value = literal_distance(probe[p], gallery[g], distance)
                nearest[gallery_ids[g]] = min(value, nearest.get(gallery_ids[g], math.inf))
        table.append(nearest)
    return table


def literal_rates(table, probe_ids, enrolled, threshold):
    """(FPIR, FNIR)."""
    false_positives, false_negatives = [], []
    for nearest, identity in zip(table, probe_ids, strict=True):
        seen = {other: value for other, value in nearest.items() if other in enrolled}
        found = min(seen, key=seen.get) if seen and min(seen.values()) <= threshold else None
        if identity not in enrolled:
            false_positives.append(found is not None)
        elif identity in seen:
            false_negatives.append(found != identity)
    return np.mean(false_positives), np.mean(false_negatives)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("cameras", ["own identity", "all identities", None])
def test_rates_are_those_of_the_definition(distance, cameras):
    """Gallery images under the probe's camera that it does not find: none without cameras."""
    data = made()
    data = data if cameras else (*data[:4], None, None)
    cross_only = cameras == "all identities"
    table = literal_table(*data, distance, cross_only)
    probe_ids, gallery_ids = data[2:4]
    found = identity_distances(*data, distance, cross_camera_only=cross_only, block_size=100)
    assert found.identities.tolist() == sorted(set(gallery_ids) - {-1})
    for enrolled in (set(gallery_ids) - {-1}, {0, 2, 5}):
        chosen = torch.tensor([identity in enrolled for identity in found.identities.tolist()])
        scores = found.select(identities=chosen).scores()
        for threshold in (0.05, 0.3, 0.9, 1.7, 9.0, math.inf):
            expected = literal_rates(table, probe_ids, enrolled, threshold)
            assert (scores.fpir(threshold), scores.fnir(threshold)) == pytest.approx(expected)
    assert 0 < scores.fnir(0.9) < 1


def test_cameras_hide_images_of_the_same_identity_only():
    data = made()
    with_cameras, without = identity_distances(*data), identity_distances(*data[:4])
    has_own = with_cameras.own >= 0
    assert torch.equal(with_cameras.other_distances, without.other_distances)
    assert (with_cameras.own_distances[has_own] > without.own_distances[has_own]).any()


def test_select_keeps_rows_and_columns():
    data = made()
    found, probes = identity_distances(*data), torch.arange(PROBES) % 3 == 0
    columns = torch.tensor([True, False, True, True, False, False, True])
    kept = np.isin(data[3], found.identities[columns].numpy())
    expected = identity_distances(
        data[0][probes], data[1][kept], data[2][probes], data[3][kept], data[4][probes], data[5][kept]
    )
    selected = found.select(probes, columns)
    for name in ("distances", "identities", "own"):
        assert torch.equal(getattr(selected, name), getattr(expected, name)), name


def test_galleries_of_all_sizes():
    """At size n: the mean over all choices of n other identities; mated searches replace one of them."""
    data = made()
    probe_ids, found = data[2], identity_distances(*data)
    table = literal_table(*data, "euclidean")
    enrollable = found.identities.tolist()
    by_size = found.scores_by_size([1, 2, 6], repeats=3000, seed=1)
    for size, scores in by_size.items():
        for threshold in (0.8, 1.6):
            false_positives, false_negatives = [], []
            for nearest, identity in zip(table, probe_ids, strict=True):
                others = [other for other in enrollable if other != identity]
                for chosen in itertools.combinations(others, size):
                    false_positives.append(min(nearest[other] for other in chosen) <= threshold)
                if identity in nearest:
                    for chosen in itertools.combinations(others, size - 1):
                        ahead = all(nearest[identity] < nearest[other] for other in chosen)
                        false_negatives.append((nearest[identity] <= threshold and ahead, len(chosen), identity))
            # Each probe counts the same, however many choices of others it has.
            fpir = mean_by_probe(false_positives, [len(list(choices(enrollable, i, size))) for i in probe_ids])
            assert scores.fpir(threshold) == pytest.approx(fpir, abs=0.01)
            mated = [i for i, nearest in zip(probe_ids, table, strict=True) if i in nearest]
            hits = [hit for hit, *_ in false_negatives]
            fnir = 1 - mean_by_probe(hits, [len(list(choices(enrollable, i, size - 1))) for i in mated])
            assert scores.fnir(threshold) == pytest.approx(fnir, abs=0.01)
    rates = [by_size[size].threshold(0.1) for size in (1, 2, 6)]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]


def choices(enrollable, identity, size):
    return itertools.combinations([other for other in enrollable if other != identity], size)


def mean_by_probe(values, counts):
    ends = np.cumsum(counts)
    assert ends[-1] == len(values)
    return np.mean([np.mean(values[end - count : end]) for end, count in zip(ends, counts, strict=True)])


def test_sizes_do_not_change_the_galleries():
    found = identity_distances(*made())
    one, other = found.scores_by_size([2, 5], repeats=4), found.scores_by_size([5], repeats=4)
    assert torch.equal(one[5].nonmated, other[5].nonmated) and torch.equal(one[5].mated, other[5].mated)
    assert not torch.equal(found.scores_by_size([2], 4, seed=1)[2].nonmated, one[2].nonmated)
    for sizes in ([0], [], [IDENTITIES]):
        with pytest.raises(InputError, match="sizes"):
            found.scores_by_size(sizes)


def test_a_threshold_reaches_the_rate_and_no_more():
    random = torch.Generator().manual_seed(0)
    mated = torch.zeros(1)
    for number, levels in ((100, 10**6), (997, 10**6), (200, 7)):  # the last with many ties
        nonmated = (1 + torch.randint(levels, (number,), generator=random)).float() / levels
        for rate in (0.01, 0.1, 0.5, 1.0):
            scores = IdentificationScores(mated, nonmated)
            threshold = scores.threshold(rate)
            assert scores.fpir(threshold) <= rate
            higher = [value for value in nonmated.tolist() if value > threshold]
            assert not higher or scores.fpir(min(higher)) > rate
    for rate in (0.0, 1.5, math.nan):
        with pytest.raises(InputError, match="fpir"):
            scores.threshold(rate)
    with pytest.raises(InputError, match="at least 1000"):
        scores.threshold(0.001)
    with pytest.raises(InputError, match="distance 0"):
        IdentificationScores(mated, torch.zeros(10)).threshold(0.5)


def test_what_is_refused():
    probe, gallery, probe_ids, gallery_ids, probe_cameras, _ = made()
    with pytest.raises(InputError, match="cameras"):
        identity_distances(probe, gallery, probe_ids, gallery_ids, probe_cameras)
    with pytest.raises(InputError, match="junk"):
        identity_distances(probe, gallery, probe_ids, [-1] * IMAGES)
    with pytest.raises(InputError, match="probe_ids"):
        identity_distances(probe, gallery, probe_ids[1:], gallery_ids)
    with pytest.raises(InputError, match="expected a probe"):
        identity_distances(probe, gallery, probe_ids, gallery_ids).select(torch.zeros(PROBES, dtype=torch.bool))


# --- probabilities ---


def test_the_fit_finds_the_probabilities_that_made_the_pairs():
    """Pairs of even odds whose log odds are 6 − 8 d."""
    random = torch.Generator().manual_seed(0)
    distances = torch.rand(400_000, generator=random, dtype=torch.float64) * 1.5
    is_same = torch.rand(len(distances), generator=random) < (6 - 8 * distances).sigmoid()
    same, different = distances[is_same], distances[~is_same]
    intercept, slope = fit_same(same, different)
    # Weights of each side are even: the intercept is that of the true odds, less the log of the shares.
    assert slope == pytest.approx(-8, rel=0.02)
    assert intercept == pytest.approx(6 - math.log(len(same) / len(different)), rel=0.02)
    repeated = fit_same(same, torch.cat([different, different, different]))
    assert repeated == pytest.approx((intercept, slope), rel=1e-3)
    at = torch.tensor([0.0, 0.5])
    assert same_probability(at, intercept, slope).tolist() == pytest.approx(
        [1 / (1 + math.exp(-intercept)), 1 / (1 + math.exp(-intercept - slope / 2))]
    )


def test_separable_pairs_have_a_finite_fit():
    intercept, slope = fit_same(torch.linspace(0, 0.4, 30), torch.linspace(0.6, 1, 500))
    assert math.isfinite(intercept) and -1e4 < slope < 0
    assert log_loss(torch.linspace(0, 0.4, 30), torch.linspace(0.6, 1, 500), intercept, slope) < 0.2


def test_distances_that_say_nothing_are_refused():
    same, different = torch.linspace(0.5, 1, 50), torch.linspace(0, 0.5, 50)
    with pytest.raises(InputError, match="no nearer"):
        fit_same(same, different)
    with pytest.raises(InputError, match="pairs"):
        fit_same(same[:0], different)


def test_log_loss_is_the_mean_over_both_sides():
    same, different = torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.9, 1.0])
    p, q = ([1 / (1 + math.exp(-2 + 3 * d)) for d in each.tolist()] for each in (same, different))
    expected = -(np.mean(np.log(p)) + np.mean(np.log(1 - np.array(q)))) / 2
    assert log_loss(same, different, 2.0, -3.0) == pytest.approx(expected)
