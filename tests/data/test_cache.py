"""Images kept in memory are those that would be read again, to the bit, and are refused where they do not fit."""

import mmap
import multiprocessing
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dual_cross_attention.data import (
    ImageList,
    reid_train_transform,
    test_loader,
    test_transform,
    train_loader,
    train_transform,
)
from dual_cross_attention.data import cache as cache_module
from dual_cross_attention.data.cache import ImageCache, available_memory, check_memory

NORM = ((0.5,) * 3, (0.25,) * 3)
GIB = 2**30


@pytest.fixture
def images(tmp_path) -> ImageList:
    """Seven images of noise, of several sizes, the third of them missing."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (20 + i, 30 - i, 3), dtype=np.uint8)).save(path)
    paths[2].unlink()
    return ImageList(paths, range(7))


def epochs(loader, count: int = 3) -> list[dict]:
    """All batches of some epochs, each of which augments in its own way."""
    batches = []
    for epoch in range(1, count + 1):
        batches += loader.read(epoch, range(len(loader)))
    return batches


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our["images"], their["images"])
        assert all(torch.equal(our[name], their[name]) for name in ("labels", "indices", "valid"))
        assert our["unreadable"] == their["unreadable"]


TRANSFORMS = {
    "fgvc": train_transform((12, 16), (14, 18), *NORM),
    "fgvc, no crop": train_transform((12, 16), (12, 16), *NORM),
    "reid": reid_train_transform((24, 12), *NORM, padding=3),
}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_training_is_the_same_to_the_bit(images, transform, num_workers):
    kept, read = (train_loader(images, transform, 2, num_workers, 3, "cpu", cache=cache) for cache in (True, False))
    ours = epochs(kept)
    assert_same(ours, epochs(read))
    named = [image.path for batch in ours for image in batch["unreadable"]]
    assert named == [f"{images.images[2]}"] * 3  # once an epoch
    assert all(2 not in batch["labels"] and 2 not in batch["indices"] for batch in ours)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_is_the_same_to_the_bit(images, num_workers):
    transform = test_transform((12, 16), (14, 18), *NORM)
    kept, read = (test_loader(images, transform, 3, num_workers, "cpu", cache=cache) for cache in (True, False))
    ours = epochs(kept)
    assert_same(ours, epochs(read))
    assert ours[0]["labels"].tolist() == [0, 1, 2] and ours[0]["valid"].tolist() == [True, True, False]
    assert ours[0]["images"][2].count_nonzero() == 0
    assert [len(batch["unreadable"]) for batch in ours] == [1, 0, 0] * 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_image_is_read_once_by_all_processes_together(images, num_workers):
    """After the first epoch the files are not needed, whichever workers read them."""
    transform = TRANSFORMS["fgvc"]
    kept, read = (train_loader(images, transform, 1, num_workers, 3, "cpu", cache=cache) for cache in (True, False))
    expected = epochs(read)
    ours = epochs(kept, 1)
    for path in images.images:
        path.unlink(missing_ok=True)
    for epoch in (2, 3):
        ours += kept.read(epoch, range(len(kept)))
    assert_same(ours, expected)


def test_a_image_that_failed_is_tried_again():
    cache = ImageCache(2, (2, 2))

    def fails(index):
        raise OSError

    with pytest.raises(OSError):
        cache.get(1, fails)
    shown = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    assert torch.equal(cache.get(1, lambda index: shown * index), shown)
    assert torch.equal(cache.get(1, fails), shown)
    assert cache.get(0, lambda index: shown * index).count_nonzero() == 0  # each has a place of its own


def test_memory_is_taken_as_it_is_filled():
    before = psutil.Process().memory_info().rss
    cache = ImageCache(1000, (550, 550))
    cache.get(999, lambda index: torch.ones(3, 550, 550, dtype=torch.uint8))
    assert psutil.Process().memory_info().rss - before < 100 * 2**20  # of 865 MiB


def test_too_little_memory_is_refused_before_anything_is_read(monkeypatch, refused):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(cache_module, "available_memory", lambda: 12 * GIB)
    check_memory(11_788, (550, 550))  # CUB: 9.96 GiB
    monkeypatch.setattr(cache_module, "available_memory", lambda: 10 * GIB)  # nothing would be left for the model
    with refused("9.96 GiB", "11,788 images", "550×550", "10.00 GiB", "--cache none", "--resize_size"):
        check_memory(11_788, (550, 550))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each process of this machine fills a cache
    monkeypatch.setattr(cache_module, "available_memory", lambda: 20 * GIB)
    with refused("2 processes", "9.96 GiB", "20.00 GiB"):
        check_memory(11_788, (550, 550))


def test_memory_that_the_system_refuses(monkeypatch, refused):
    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with refused("0.03 GiB", "Cannot allocate memory", "--cache none"):
        ImageCache(1000, (100, 100))


def test_available_memory_is_that_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    monkeypatch.setattr(cache_module, "CGROUP", tmp_path)
    monkeypatch.setattr(cache_module, "OWN_CGROUP", tmp_path / "none")

    def write(limit: object, used: int) -> None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text(f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file {GIB}\n")

    assert available_memory() == 8 * GIB  # no such files
    write("max", 4 * GIB)
    assert available_memory() == 8 * GIB
    write(6 * GIB, 4 * GIB)
    assert available_memory() == 5 * GIB  # 3 of the 4 GiB are files, which give way
    (tmp_path / "own").write_text("0::/job/step\n")  # a batch system's job, limited one level up
    monkeypatch.setattr(cache_module, "OWN_CGROUP", tmp_path / "own")
    (tmp_path / "job" / "step").mkdir(parents=True)
    for name in ("memory.current", "memory.stat"):
        (tmp_path / "job" / name).write_text((tmp_path / name).read_text())
    (tmp_path / "job" / "memory.max").write_text(f"{3 * GIB}")
    assert available_memory() == 2 * GIB
    (tmp_path / "job" / "memory.max").write_text("max")
    write(64 * GIB, 4 * GIB)
    assert available_memory() == 8 * GIB


def test_processes_that_cannot_share_it_are_refused(images, monkeypatch, refused):
    """As on Windows; where processes can be forked, the loader has them forked, whatever the system's default is."""
    transform = TRANSFORMS["fgvc"]
    forked = train_loader(images, transform, 2, 2, 0, "cpu", cache=True)
    assert forked.loader.multiprocessing_context.get_start_method() == "fork"
    assert train_loader(images, transform, 2, 2, 0, "cpu").loader.multiprocessing_context is None
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with refused("--num_workers 2", "forked", "--num_workers 0", "--cache none"):
        train_loader(images, transform, 2, 2, 0, "cpu", cache=True)
    assert len(epochs(train_loader(images, transform, 2, 0, 0, "cpu", cache=True), 1)) == 4
