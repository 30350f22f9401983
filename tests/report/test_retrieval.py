"""What a report shows of re-identification, against the file that `dcal eval --save_ranking` writes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dual_cross_attention.inference.evaluation import evaluate
from dual_cross_attention.report.opened_run import open_run
from dual_cross_attention.report.retrieval import choose_queries, evaluate_retrieval
from dual_cross_attention.runs.run_folder import RunFolder

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def evaluated(reid_run, tmp_path_factory):
    """Metrics and rankings of `dcal eval`."""
    path = tmp_path_factory.mktemp("rankings") / "ranking.jsonl"
    metrics = evaluate(reid_run, device="cpu", num_workers=0, save_ranking=path)
    return metrics, [json.loads(line) for line in path.read_text().splitlines()]


def average_precision(matches):
    ranks = [rank for rank, is_match in enumerate(matches, start=1) if is_match]
    return sum(found / rank for found, rank in enumerate(ranks, start=1)) / len(ranks)


def test_retrieval_is_that_of_eval(reid_run, evaluated):
    metrics, rankings = evaluated
    opened = open_run(RunFolder(reid_run), "best", None, None, "cpu", None, None, 0, QUIET)
    result = evaluate_retrieval(opened, queries=4, depth=3, console=QUIET)
    assert result.metrics == pytest.approx({name: metrics[name] for name in result.metrics})
    assert "mAP_glca" in result.metrics and result.cmc.keys() == {"", "sa", "glca"}
    valid = [each for each in rankings if any(each["matches"])]
    for k in (1, 3, 7):
        share = 100 * sum(any(each["matches"][:k]) for each in valid) / len(valid)
        assert result.cmc[""][k - 1] == pytest.approx(share)

    # Cameras are numbered by their sorted names: door 0, hall 1.
    for each in result.by_camera:
        of_camera = [line for line in valid if Path(line["query"]).name.startswith(("door", "hall")[each.camera])]
        assert each.queries == len(of_camera)
        precisions = [average_precision(line["matches"]) for line in of_camera]
        assert each.mAP == pytest.approx(100 * sum(precisions) / len(precisions))
    assert len(result.by_camera) == 2 and result.by_camera[0].mAP <= result.by_camera[1].mAP

    by_query = {line["query"]: line for line in rankings}
    assert len(result.ranked) == 4
    for each in result.ranked:
        line = next(line for name, line in by_query.items() if opened.name(each.query).endswith(name))
        assert each.average_precision == pytest.approx(average_precision(line["matches"]))
        names = zip(each.gallery, line["gallery"][:3], strict=True)
        assert all(opened.name(found).endswith(name) for found, name in names)
        assert each.is_match == line["matches"][:3]
        assert each.distances == pytest.approx(line["distances"][:3], abs=1e-5)
    lowest = sorted(average_precision(line["matches"]) for line in valid)[:2]
    assert [each.average_precision for each in result.ranked[:2]] == pytest.approx(lowest)


def test_queries_that_are_shown():
    precisions = np.array([0.9, math.nan, 0.1, 0.5, 0.3, 0.7, 1.0])
    assert choose_queries(precisions, 4).tolist() == [2, 4, 0, 6]  # the two lowest, then evenly over the others
    assert sorted(choose_queries(precisions, 50).tolist()) == [0, 2, 3, 4, 5, 6]
    assert choose_queries(np.array([math.nan, 0.5]), 1).tolist() == [1]


def test_right_and_wrong_are_marked_without_color(reid_report, read_page):
    page = read_page(reid_report)
    assert "✓" in page.text and "✗" in page.text
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert any("another identity" in each for each in alts) and any("same identity" in each for each in alts)
    assert "mAP by camera" in page.text and "Rank-k accuracy" in page.text
