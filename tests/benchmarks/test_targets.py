"""The table of targets: what is kept, what is missed, and what could not be measured."""

import json

from benchmarks.targets import MEASUREMENTS, TINY_FLAGS, Measurement, Target, cell, judge, main, run


def test_targets_are_kept_or_missed_on_the_right_side():
    speed = Target("speed", 45, cell("full", "speed"), "%", at_least=True)
    memory = Target("memory", 12, cell("full", "MiB", 1 / 1024), "GiB")
    measurement = Measurement("here", "train_step", [speed, memory])
    kept = judge(measurement, {"rows": {"full": {"speed": 45.0, "MiB": 12 * 1024}}})
    missed = judge(measurement, {"rows": {"full": {"speed": 44.9, "MiB": 12.1 * 1024}}})
    assert [line["met"] for line in kept] == ["yes", "yes"]
    assert [line["met"] for line in missed] == ["**no**", "**no**"]
    assert [line["target"] for line in kept] == ["≥ 45 %", "≤ 12 GiB"]
    assert missed[1]["measured"] == "12.1 GiB"


def test_a_failure_is_reported_in_its_row_only(monkeypatch, tmp_path, capfd):
    target = Target("ms", 2, cell("full", "ms"))
    measurements = [Measurement("broken", "no_such_benchmark", [target, target]), Measurement("fine", "fake", [target])]
    monkeypatch.setitem(MEASUREMENTS, "cpu", measurements)
    fake = {"rows": {"full": {"ms": 1.5}}}
    monkeypatch.setattr(
        "benchmarks.targets.run", lambda words: fake if words == ["fake", "--device", "cpu"] else run(words)
    )
    assert main(["--device", "cpu", "--json", str(tmp_path / "rows.json")]) == 0
    printed = capfd.readouterr().out
    assert printed.count("failed: ") == 2 and "No module named benchmarks.no_such_benchmark" in printed
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["met"] for row in rows.values()] == ["no", "no", "yes"]


def test_every_benchmark_has_its_tiny_flags():
    assert {m.command.split()[0] for group in MEASUREMENTS.values() for m in group} <= TINY_FLAGS.keys()
