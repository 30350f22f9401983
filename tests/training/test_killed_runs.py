"""Runs that are killed repeatedly end with the same results as an undisturbed run; see `faults.py`."""

import random
import signal
from collections import Counter

import pytest

WRITING = ("write", "flush", "rename", "remove", "checkpoint", "result", "mended")
"""First words of the events that belong to writing."""


@pytest.fixture
def kill_and_compare(tasks, undisturbed, train_until, assert_same_results, tmp_path):
    """Kills runs of a task at drawn moments, each again and again until it ends, and compares what it ends with.

    Returns the kinds of events at which they were killed.
    """

    def kill(task: str, kills: int, seed: int, only: tuple[str, ...] = ("",)) -> Counter[str]:
        drawn, killed, runs = random.Random(seed), [], 0
        flags = [*tasks[task], "--checkpoint_minutes=0"]
        counted = train_until(flags, tmp_path / "counted")
        assert counted.status == 0, counted.err
        assert_same_results(tmp_path / "counted", undisturbed(task))
        events = counted.events | dict.fromkeys(("mended, before", "mended, after"), 1)  # only where a run continues
        kinds = sorted(kind for kind in events if kind.startswith(only))
        queue: list[str] = []
        while len(killed) < kills:
            run, of_this = tmp_path / f"run-{runs}", 0
            runs += 1
            while True:
                queue = queue or drawn.sample(kinds, len(kinds))  # every kind comes up
                kind, does = queue.pop(), drawn.choice(("kill", "power cut"))
                # More and more early ones: else a run that is killed often would hardly get on.
                number = drawn.randint(1, max(1, round(events[kind] / (1 + of_this / 2))))
                ended = train_until(flags, run, kind=kind, number=number, does=does, seed=drawn.randrange(2**32))
                if ended.status != -signal.SIGKILL:
                    break
                killed.append((kind, number, does))
                of_this += 1
            history = killed[len(killed) - of_this :]
            assert ended.status == 0, (history, ended)
            try:
                assert_same_results(run, undisturbed(task))
            except Exception as error:
                raise AssertionError(history) from error
        cuts = sum(does == "power cut" for *_, does in killed)
        told = "; ".join(f"{kind} {number}" for kind, number, _ in killed)
        print(
            f"\n{task}: survived {len(killed)} of {len(killed)} ends, {cuts} of them power cuts, in {runs} runs: {told}"
        )
        return Counter(kind for kind, *_ in killed)

    return kill


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_a_killed_run_ends_with_equal_results(kill_and_compare, task):
    assert kill_and_compare(task, kills=5, seed=3).total() >= 5


@pytest.mark.slow
@pytest.mark.parametrize("only", [("",), WRITING], ids=["anywhere", "while writing"])
@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_at_many_moments(kill_and_compare, task, only):
    found = kill_and_compare(task, kills=25, seed=len(only), only=only)
    assert found.total() >= 25
    assert len(found) >= 10  # of different kinds
