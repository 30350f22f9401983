"""Processes that read images die or hang: they are replaced, and nothing that comes out changes."""

import logging
import time
from itertools import islice

import pytest
from PIL import Image

from dual_cross_attention.data import loaders, read_image, test_transform


def test_results_do_not_depend_on_how_many_there_are(train_until, tasks, undisturbed, assert_same_results, tmp_path):
    """`undisturbed` has none."""
    assert train_until([*tasks["fgvc"], "--num_workers=2"], tmp_path / "run").status == 0
    assert_same_results(tmp_path / "run", undisturbed("fgvc"))


CASES = [
    pytest.param(
        task, *happens, epoch, marks=() if (task, happens[0], epoch) == ("fgvc", "die", 2) else pytest.mark.slow
    )
    for task in ("fgvc", "reid")
    for happens in (("die", "DataLoader worker (pid"), ("hang", "DataLoader timed out after 2 seconds"))
    for epoch in (2, 0)  # 0: evaluation
]


@pytest.mark.parametrize(("task", "does", "said", "epoch"), CASES)
def test_one_that_dies_or_hangs_is_replaced(
    train_until, tasks, undisturbed, assert_same_results, tmp_path, task, does, said, epoch
):
    run = tmp_path / "run"
    flags = [*tasks[task], "--num_workers=2", "--eval_batch_size=3"]
    ended = train_until(flags, run, kind=f"image of epoch {epoch}", number=4, does=does, patience=2.0)
    assert ended.status == 0, ended
    warnings = [line for line in ended.out.splitlines() if line.startswith("warning: ")]
    (warning,) = (line for line in warnings if "both training and test" not in line)  # which is of the data
    assert warning.startswith(f"warning: a process that reads images broke down, and is replaced: {said}")
    assert_same_results(run, undisturbed(task))


@pytest.mark.slow
def test_three_times_in_a_row_is_the_end(train_until, tasks, undisturbed, assert_same_results, tmp_path):
    """At the same batch: each that takes the place of one that died dies too."""
    run = tmp_path / "run"
    flags = [*tasks["fgvc"], "--num_workers=1"]
    ended = train_until(flags, run, kind="image of epoch 2", number=1, does="die", always=True, patience=1.0)
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith(
        f"dcal: error: the workers that read images broke down {loaders.READING_ATTEMPTS} times in a row, at batch "
        "0 of epoch 2 (DataLoader worker (pid"
    )
    assert line.endswith("memory may be short, or a disk may hang; try fewer --num_workers, or 0")
    assert ended.out.count("is replaced") == loaders.READING_ATTEMPTS - 1
    # What it advises works.
    assert train_until(tasks["fgvc"], run).status == 0
    assert_same_results(run, undisturbed("fgvc"))


@pytest.mark.slow
def test_one_that_died_is_noticed_long_before_one_that_hangs(train_until, tasks, tmp_path):
    """With the patience that a run has, which is ten minutes."""
    assert loaders.NOTICED_WITHIN < loaders.PATIENCE / 10
    flags = [*tasks["fgvc"], "--num_workers=1"]
    ended = train_until(flags, tmp_path / "run", kind="image of epoch 2", number=4, does="die")
    assert ended.status == 0 and "DataLoader worker (pid" in ended.out


def test_a_slow_one_is_not_hung(monkeypatch):
    """What comes after PyTorch's own patience, and before ours, is waited for."""
    said = iter([RuntimeError("DataLoader timed out after 5 seconds"), {"a": 1}, RuntimeError("other"), None])

    class Slow:
        def __next__(self):
            given = next(said)
            if given is None:
                raise StopIteration
            if isinstance(given, Exception):
                raise given
            return given

    dataset = loaders.ImageDataset(loaders.ImageList([], []), None, training=False)
    batches = loaders.Batches(dataset, loaders.SequentialBatchSampler(0, 1), num_workers=1, timeout=5)
    slow = Slow()
    assert batches._next_of(slow) == {"a": 1}
    with pytest.raises(RuntimeError, match="other"):
        batches._next_of(slow)
    assert batches._next_of(slow) is None
    monkeypatch.setattr(loaders, "PATIENCE", 20.0)
    said = (RuntimeError("DataLoader timed out after 5 seconds") for _ in range(5))
    with pytest.raises(RuntimeError, match=r"^DataLoader timed out after 20 seconds"):
        batches._next_of(slow)


def test_an_abandoned_reading_blocks_no_other(monkeypatch, tmp_path, caplog):
    """A reading that is given up while one of its images hangs: the next one has new processes, without a warning."""
    hangs = tmp_path / "hangs"
    images = loaders.ImageList([Image.new("RGB", (4, 4)) for _ in range(10)], list(range(10)))

    def slow(image, size):
        if image is images.images[7] and hangs.exists():
            time.sleep(60)
        return read_image(image, size)

    monkeypatch.setattr("dual_cross_attention.data.dataset.read_image", slow)
    monkeypatch.setattr(loaders, "NOTICED_WITHIN", 0.5)
    transform = test_transform((4, 4), (4, 4), (0.0,) * 3, (1.0,) * 3)
    batches = loaders.test_loader(images, transform, batch_size=2, num_workers=2, device_type="cpu")

    def labels(count: int = 5) -> list[int]:
        """Of as many of all batches, taken as a training takes them, which does not ask for one after the last."""
        return [label for batch in islice(batches.read(0, range(5)), count) for label in batch["labels"].tolist()]

    def processes() -> list[int]:
        return [process.pid for process in batches.loader._iterator._workers]

    assert labels() == list(range(10))
    first = processes()
    assert labels() == list(range(10)) and list(batches.read(0, [])) == []
    assert labels() == list(range(10)) and processes() == first
    hangs.touch()
    assert labels(2) == [0, 1, 2, 3]
    hangs.unlink()
    with caplog.at_level(logging.WARNING):
        assert labels() == list(range(10))
    assert not caplog.records and not {*processes()} & {*first}
    batches.close()
