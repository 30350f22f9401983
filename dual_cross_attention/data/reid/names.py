"""Checks of identity and camera names: several spellings of one name, and names in both training and test."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from dual_cross_attention.data.names import composed
from dual_cross_attention.data.reid.records import Sighting
from dual_cross_attention.text import escape

WHOLE_FLOAT = re.compile(r"(-?[0-9]+)\.0*")
"""An integer written as a float, as pandas does for columns with missing values."""

CAMERA_PREFIX = re.compile("^(camera|cam|c)[ _-]?(?=[0-9])")

Splits = Mapping[str, list[Sighting]]


def one_spelling(dataset: str, splits: Splits, warnings: list[str]) -> dict[str, list[Sighting]]:
    """Returns the same images, with one spelling for each identity and camera.

    `1` and `1.0` are one name, and so are the composed and the decomposed form of Unicode. A name with a single
    spelling is unchanged, since existing runs have recorded it.

    Args:
        warnings: a line for identities and one for cameras is added.
    """
    renamed = {}
    for field, plural in (("identity", "identities"), ("camera", "cameras")):
        groups = _groups((getattr(s, field) for split in splits.values() for s in split), _same)
        renamed[field] = {name: key for key, names in groups.items() if len(names) > 1 for name in names}
        if merged := [names for names in groups.values() if len(names) > 1]:
            # Both Unicode forms look the same, so code points are shown.
            examples = "; ".join(" and ".join(map(ascii, sorted(names))) for names in merged[:3])
            warnings.append(
                f"{dataset}: {len(merged):,} {plural} are written in two ways and taken for one: {examples}"
            )
    if not any(renamed.values()):
        return dict(splits)
    return {
        name: [
            s._replace(
                identity=renamed["identity"].get(s.identity, s.identity),
                camera=renamed["camera"].get(s.camera, s.camera),
            )
            for s in split
        ]
        for name, split in splits.items()
    }


def look_alikes(dataset: str, splits: Splits) -> list[str]:
    """Warnings about different names that may mean the same: `001` and `1`, `Ann` and `ann`, cameras `c1` and `1`."""
    lines = []
    for field, plural, key in (("identity", "identities", _alike), ("camera", "cameras", _alike_camera)):
        groups = _groups((getattr(s, field) for split in splits.values() for s in split), key)
        if similar := [names for names in groups.values() if len(names) > 1]:
            examples = "; ".join(" and ".join(map(_quoted, sorted(names))) for names in similar[:3])
            lines.append(
                f"{dataset}: {len(similar):,} {plural} differ from another in leading zeros, capitals, spaces or a "
                f"prefix such as c only and are taken for different ones: {examples}; write them alike if they are "
                "the same"
            )
    return lines


def in_both(dataset: str, trained: Iterable[str], tested: Iterable[str]) -> list[str]:
    """Warning about training identities that are in query or gallery too."""
    both = sorted(set(trained) & set(tested))
    if not both:
        return []
    return [
        f"{dataset}: {len(both):,} identities are in both training and test, such as "
        f"{', '.join(map(_quoted, both[:3]))}: results on them say little about identities that are new to the model"
    ]


def _same(name: str) -> str:
    whole = WHOLE_FLOAT.fullmatch(name)
    return whole[1] if whole else composed(name)


def _alike(name: str) -> str:
    folded = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return re.sub("[0-9]+", lambda digits: digits[0].lstrip("0") or "0", folded)


def _alike_camera(name: str) -> str:
    return CAMERA_PREFIX.sub("", _alike(name))


def _groups(names: Iterable[str], key: Callable[[str], str]) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for name in set(names):
        groups[key(name)].add(name)
    return dict(sorted(groups.items()))


def _quoted(name: str) -> str:
    return f"'{escape(name)}'"
