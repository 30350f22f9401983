"""Clocks, memory and tables of the benchmarks."""

import pytest
import torch

from benchmarks.measure import count_flops, format_value, peak_above_idle, table, time_in_turns

CPU = torch.device("cpu")


def test_functions_take_turns_and_the_median_is_of_what_comes_after_the_warm_up(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now[0])

    def taking(name, seconds):
        def function():
            calls.append(name)
            now[0] += seconds.pop(0)

        return function

    functions = {"a": taking("a", [100.0, 1.0, 9.0, 3.0]), "b": taking("b", [200.0, 5.0, 4.0, 6.0])}
    assert time_in_turns(functions, CPU, repeats=3, warmup=1) == {"a": 3.0, "b": 5.0}
    assert calls == ["a", "b"] * 4


def test_peak_memory_is_that_of_the_work_and_not_of_this_process():
    here = torch.ones(2**26)  # 256 MiB, which a child must not be taken to have had
    assert here.sum() == here.numel()
    assert 128 <= peak_above_idle(CPU, torch.ones, 2**25) < 160


def test_flops_are_counted_through_fused_attention():
    query = torch.ones(2, 3, 64, 16)
    counted = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert counted == 2 * 2 * (2 * 3 * 64 * 64 * 16)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.061_23, "0.0612"), (2.0, "2.00"), (41.26, "41.3"), (1234.5, "1,234"), (12, "12"), (0.0, "0"), (None, "–")],
)
def test_numbers_have_three_digits(value, text):
    assert format_value(value) == text


def test_table():
    assert table({"full": {"ms": 2.5, "peak MiB": None}}).splitlines() == [
        "| row | ms | peak MiB |",
        "| --- | --- | --- |",
        "| `full` | 2.50 | – |",
    ]
