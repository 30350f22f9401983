"""The validation split by a hash of names, against the rule in words."""

import hashlib
import random
import unicodedata

import pytest

from dual_cross_attention.data.fgvc.hash_split import choose_validation


def dataset(sizes):
    """Names and labels of classes of these sizes."""
    names = [f"class {label}/{place:04}.jpg" for label, size in enumerate(sizes) for place in range(size)]
    return names, [int(name.split()[1].split("/")[0]) for name in names]


def validation(names, labels, fraction, copies=()):
    chosen = choose_validation(names, labels, copies, fraction)
    return {name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen}


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.2, 0.25, 0.5, 0.8, 0.999])
def test_the_first_of_each_class_by_hash(fraction):
    sizes = (1, 2, 3, 10, 31, 100)
    names, labels = dataset(sizes)
    chosen = validation(names, labels, fraction)
    for label, size in enumerate(sizes):
        own = [name for name, its in zip(names, labels, strict=True) if its == label]
        own.sort(key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).hexdigest())
        wanted = 0 if size == 1 else min(max(round(fraction * size + 1e-9), 1), size - 1)
        assert chosen & {*own} == {*own[:wanted]}, (label, fraction)


def test_order_of_listing_and_form_of_unicode_do_not_matter():
    names = [f"caf\u00e9/\u00e4{number}.jpg" for number in range(40)]
    labels = [0] * 40
    expected = validation(names, labels, 0.2)
    shuffled = random.Random(0).sample(names, 40)
    assert validation(shuffled, labels, 0.2) == expected
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    assert decomposed != names
    again = validation(decomposed, labels, 0.2)
    assert {unicodedata.normalize("NFC", name) for name in again} == expected


def test_a_new_image_moves_at_most_one_other_and_none_of_another_class():
    names, labels = dataset((7, 20, 33))
    before = validation(names, labels, 0.2)
    moved = []
    for number in range(60):
        new = f"class 1/new {number}.jpg"
        after = validation([*names, new], [*labels, 1], 0.2)
        changed = (before ^ after) - {new}
        assert len(changed) <= 1 and all(name.startswith("class 1/") for name in changed)
        moved.append(len(changed))
    assert moved.count(0) > 30  # most move none


def test_copies_count_once_and_stay_together():
    names, labels = dataset((10, 2))
    names, labels = [*names, *(f"class 0/copy {n}.jpg" for n in range(30)), "class 1/c.jpg"], [*labels, *[0] * 30, 1]
    group = [3, *range(12, 42)]  # 31 names of one image
    together = [10, 11, 42]  # class 1 has a single image under three names
    for fraction in (0.2, 0.5, 0.9):
        chosen = choose_validation(names, labels, [group, together], fraction)
        assert len({chosen[place] for place in group}) == 1
        distinct = sum(chosen[place] for place in range(10))
        assert distinct == round(fraction * 10)
        assert not any(chosen[place] for place in together)


def test_the_rank_of_copies_is_that_of_the_smallest_hash():
    names, labels = dataset((20,))
    ranked = sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).hexdigest())
    for listed in (names, names[::-1]):
        copies = sorted((listed.index(ranked[0]), listed.index(ranked[-1])))
        assert validation(listed, labels, 0.1, [copies]) == {*ranked[:2], ranked[-1]}


def test_an_image_in_several_classes_is_a_training_image():
    names, labels = dataset((5, 5))
    chosen = choose_validation(names, labels, [[2, 7]], 0.8)
    assert not chosen[2] and not chosen[7]
    assert sum(chosen[:5]) == sum(chosen[5:]) == 4
