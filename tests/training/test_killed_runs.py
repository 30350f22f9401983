"""Runs that are killed again and again end with the very results of one that nobody disturbed: see `faults.py`."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("faults.py")


@pytest.fixture
def kill_and_compare(tasks, undisturbed, environment, assert_same_results, tmp_path):
    """Kills runs of a task, and compares what they end with; returns the kinds of events at which they were killed."""

    def kill(task: str, kills: int, seed: int, writing: bool) -> Counter[str]:
        spec = tmp_path / "spec.json"
        named = {"flags": [*tasks[task], "--checkpoint_minutes=0"], "folder": str(tmp_path / "run")}
        spec.write_text(json.dumps({**named, "kills": kills, "seed": seed, "writing": writing}))
        done = subprocess.run(
            [sys.executable, FAULTS, spec], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        runs = json.loads(spec.with_suffix(".result").read_text())
        for run in runs:
            said = f"{run['killed']}: {Path(run['folder'] + '.log').read_text()[-2000:]}"
            assert run["status"] == 0, said
            try:
                assert_same_results(Path(run["folder"]), undisturbed(task))
            except Exception as error:
                raise AssertionError(said) from error
        killed = [event for run in runs for event in run["killed"]]
        power = sum(cut for *_, cut in killed)
        told = "; ".join(f"{kind} {number}{' (power cut)' if cut else ''}" for kind, number, cut in killed)
        print(f"{task}: {len(killed)} of {len(killed)} kills survived, {power} of them power cuts: {told}")
        return Counter(kind for kind, *_ in killed)

    return kill


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(kill_and_compare, task):
    assert kill_and_compare(task, kills=3, seed=3, writing=False).total() >= 3


@pytest.mark.slow
@pytest.mark.parametrize("writing", [False, True], ids=["anywhere", "while writing"])
@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_at_many_moments(kill_and_compare, task, writing):
    found = kill_and_compare(task, kills=25, seed=1 + writing, writing=writing)
    assert found.total() >= 25
    assert len(found) >= 10  # of different kinds
