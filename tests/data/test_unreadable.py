"""Unreadable images are told once, by their exact path, and are too many beyond a limit."""

import pytest

from dual_cross_attention.data.unreadable import Unreadable, UnreadableImages, allowed_unreadable
from tests.helpers import assert_lines


def batches(*images: Unreadable) -> list[dict]:
    return [{"images": i, "unreadable": [image]} for i, image in enumerate(images)]


def test_each_image_is_reported_once():
    told = []
    watched = UnreadableImages(told.append)
    odd = "a: b\n[c].jpg"
    images = (
        Unreadable(odd, "empty: no bytes", True),
        Unreadable("x.jpg", "gone", False),
        Unreadable(odd, "again", True),
    )
    assert list(watched.watch(batches(*images))) == [{"images": 0}, {"images": 1}, {"images": 2}]
    assert watched.found == {odd: "empty: no bytes", "x.jpg": "gone"} and len(watched) == 2
    assert_lines(
        told, ("unreadable", "replaced", ": a: b\\n[c].jpg: empty: no bytes"), ("unreadable", "left out", "x.jpg: gone")
    )


@pytest.mark.parametrize("allowed", [0, 2, 5])
def test_one_more_than_allowed_is_an_error(allowed, refused):
    told = []
    watched = UnreadableImages(told.append, allowed)
    images = [Unreadable(f"{number}.jpg", "empty", True) for number in range(allowed + 1)]
    list(watched.watch(batches(*images[:-1], *images[:-1])))
    with refused(f"{allowed + 1} images", f"--max_bad_images allows {allowed}", "0.jpg (empty)", "dcal check-data"):
        list(watched.watch(batches(images[-1])))
    assert len(told) == allowed + 1


def test_what_another_process_has_found_counts(refused):
    told = []
    watched = UnreadableImages(told.append, allowed=2)
    watched.add(Unreadable("a.jpg", "empty", True))
    watched.merge({"a.jpg": "empty", "b\n.jpg": "gone"})
    assert told[1:] == ["unreadable image: b\\n.jpg: gone"]
    with refused("3 images", "--max_bad_images allows 2"):
        watched.merge({"c.jpg": "empty"})
    watched.merge({"c.jpg": "empty"})  # is told once
    assert list(watched.found) == ["a.jpg", "b\n.jpg", "c.jpg"] and len(told) == 3


def test_the_limit_follows_the_data_set_unless_it_is_given():
    assert [allowed_unreadable(None, count) for count in (5, 1000, 1100, 32_621)] == [10, 10, 11, 326]
    assert [allowed_unreadable(given, 32_621) for given in (0, 3)] == [0, 3]
