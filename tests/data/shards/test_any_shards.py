"""Whatever is typed as a pattern, or stands in a description or an index, gives data or one line that refuses it."""

import io
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dual_cross_attention.data import load_fgvc
from dual_cross_attention.data.shards.discovery import DESCRIPTION, expand
from dual_cross_attention.data.shards.writing import ArchiveWriter
from dual_cross_attention.errors import InputError

few = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def load_or_refuse(root: Path | str) -> None:
    try:
        data = load_fgvc("shards", root)
        assert all(0 <= label < len(data.classes) for label in data.train.labels)
        assert [image.name for image in data.train.images]
    except InputError as error:
        assert f"{error}" and len(f"{error}".splitlines()) == 1


PARTS = st.sampled_from(["{", "}", "..", ",", "0", "007", "9" * 12, "train-", ".tar", "/", "a", "\0", "\n", "é"])


@few
@given(st.lists(PARTS, max_size=12).map("".join))
def test_any_pattern(pattern):
    try:
        names = expand(pattern)
        assert names and all("{" not in name or "{" in pattern for name in names)
    except InputError as error:
        assert len(f"{error}".splitlines()) == 1
    load_or_refuse(f"/nowhere/{pattern}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder as `dcal shard` leaves it."""
    folder = tmp_path_factory.mktemp("written")
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    archives = {}
    for split in ("train", "val"):
        writer = ArchiveWriter(folder, split, 10**6)
        list(writer.write({"png": file.getvalue(), "cls": b"%d" % (number % 2)} for number in range(4)))
        archives[split] = writer.archives
    said = {"task": "fgvc", "dataset": "x", "classes": ["a", "b"], "archives": archives, "settings": {}}
    (folder / DESCRIPTION).write_text(json.dumps(said))
    assert load_fgvc("shards", folder).classes == ["a", "b"]
    return folder


@few
@given(st.data())
def test_any_description(written, tmp_path_factory, data):
    folder = Path(shutil.copytree(written, tmp_path_factory.mktemp("any") / "shards"))
    said = json.loads((folder / DESCRIPTION).read_text())
    said[data.draw(st.sampled_from(sorted(said)))] = data.draw(JSON)
    raw = json.dumps(said).encode() if data.draw(st.booleans()) else data.draw(st.binary(max_size=60))
    (folder / DESCRIPTION).write_bytes(raw)
    load_or_refuse(folder)


@few
@given(st.data())
def test_any_index(written, tmp_path_factory, data):
    """With some of its bytes changed, it is made again, or what it says is checked."""
    folder = Path(shutil.copytree(written, tmp_path_factory.mktemp("any") / "shards"))
    (path,) = folder.glob("train-*.index")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at, new = data.draw(st.integers(0, len(raw))), data.draw(st.binary(max_size=5) | st.sampled_from([b"9", b'"']))
        raw[at : at + len(new)] = new
    path.write_bytes(raw)
    load_or_refuse(folder)
