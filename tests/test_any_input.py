"""Whatever is typed, or stands in a file of settings or labels, gives settings or data, or one line that refuses it.

The examples are the same at every run (`derandomize`), so that a failure is one of the change under test.
"""

import json
import string
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dual_cross_attention.configs import CONFIGS, TrainingConfig
from dual_cross_attention.configs.parse import parse_config, restore_config
from dual_cross_attention.data import load_fgvc, load_reid
from dual_cross_attention.errors import InputError

quick = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
few = settings(quick, max_examples=60)


def given_or_refused(call: Callable, *arguments: object) -> object:
    """What the call returns; None if it refuses in one line. Anything else that is raised fails the test."""
    try:
        return call(*arguments)
    except InputError as error:
        message = f"{error}"
        assert message and len(message.splitlines()) == 1
        return None


NAMES = sorted({field.name for tasks in CONFIGS.values() for each in tasks.values() for field in fields(each)})
ODD_WORDS = ["auto", "cub", "toy", "reid", "fgvc", "full", "1e-4", "[1", "{a: 1}", "[8, 8]", "!!set", "*a", "0x10"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(ODD_WORDS)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
SETTINGS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=10), VALUES, max_size=5)
WORDS = st.one_of(
    st.sampled_from([f"--{name}" for name in NAMES]),
    st.sampled_from(NAMES).flatmap(lambda name: SCALARS.map(lambda value: f"--{name}={value}")),
    SCALARS.map(str),
    st.text(max_size=10).map(lambda text: f"--{text}"),
)


def is_settings(config: object) -> None:
    assert config is None or isinstance(config, TrainingConfig)


@quick
@given(st.lists(WORDS.filter(lambda word: "config" not in word), max_size=5))
def test_any_flags(words):
    is_settings(given_or_refused(parse_config, words))


@quick
@given(SETTINGS)
def test_any_settings_of_a_model_file(values):
    is_settings(given_or_refused(restore_config, values, "the header"))
    try:
        again = json.loads(json.dumps(values))
    except ValueError:  # a number of too many digits
        return
    is_settings(given_or_refused(restore_config, again, "the header"))


def parse_yaml(raw: bytes) -> TrainingConfig:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_bytes(raw)
        return parse_config(["--config", str(path)])


@quick
@given(SETTINGS)
def test_any_settings_in_yaml(values):
    is_settings(given_or_refused(parse_yaml, yaml.safe_dump(values).encode()))


YAML_WORDS = [": ", "- ", "<<: ", "&a ", "*a", "!!int ", "!!python/name:os ", "---\n", "0o7", "2001-1-1"]
YAML_PARTS = st.sampled_from([*"[]{}:,-?|>&*!%@`#'\"\n\t ", *YAML_WORDS, *NAMES]) | st.text(max_size=5)


@quick
@given(st.lists(YAML_PARTS, max_size=25).map("".join))
def test_any_text_as_yaml(text):
    is_settings(given_or_refused(parse_yaml, text.encode("utf-8", "surrogatepass")))


@few
@given(st.binary(max_size=200))
def test_any_bytes_as_yaml(raw):
    is_settings(given_or_refused(parse_yaml, raw))


# --- label files ---


class Layout:
    """A dataset of a few files that are empty images (only their names count here), and lists of them.

    Args:
        load: reads it from a folder.
        lists: the files to be written, with what a good one holds.
        images: paths of images.
    """

    def __init__(self, load: Callable[[Path], object], lists: dict[str, str], images: list[str]):
        self.load, self.lists, self.images = load, lists, images

    def read(self, changed: str, raw: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name in self.images:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).touch()
            for name, text in self.lists.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(raw if name == changed else text.encode())
            return self.load(root)


CUB, PLANES, MSMT, VERI = "CUB_200_2011", "fgvc-aircraft-2013b/data", "MSMT17_V1", "VeRi"
ITEM = '<Item imageName="{0}_c001_0.jpg" vehicleID="{0}" cameraID="c001"/>'
XML = f"<TrainingImages><Items>{ITEM.format('0001')}{ITEM.format('0002')}</Items></TrainingImages>"
LAYOUTS = {
    "cub": Layout(
        lambda root: load_fgvc("cub", root),
        {
            f"{CUB}/classes.txt": "1 001.A\n2 002.B\n",
            f"{CUB}/images.txt": "1 a.jpg\n2 b.jpg\n3 c.jpg\n4 d.jpg\n",
            f"{CUB}/image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
            f"{CUB}/train_test_split.txt": "1 1\n2 0\n3 1\n4 0\n",
        },
        [f"{CUB}/images/{name}.jpg" for name in "abcd"],
    ),
    "aircraft": Layout(
        lambda root: load_fgvc("aircraft", root),
        {
            f"{PLANES}/variants.txt": "A1\nB 2\n",
            f"{PLANES}/images_variant_trainval.txt": "1 A1\n2 B 2\n",
            f"{PLANES}/images_variant_test.txt": "3 A1\n4 B 2\n",
        },
        [f"{PLANES}/images/{name}.jpg" for name in "1234"],
    ),
    "folder": Layout(
        lambda root: load_reid("folder", root),
        {
            f"{split}.csv": f"path,identity,camera\na.jpg,x,{split}\nb.jpg,y,{split}\n"
            for split in ("train", "query", "gallery")
        },
        ["a.jpg", "b.jpg"],
    ),
    "msmt17": Layout(
        lambda root: load_reid("msmt17", root),
        {
            f"{MSMT}/list_{name}.txt": f"0000/0000_000_0{camera}_x.jpg 0\n0001/0001_000_0{camera}_x.jpg 1\n"
            for camera, name in enumerate(("train", "val", "query", "gallery"))
        },
        [
            f"{MSMT}/{split}/000{identity}/000{identity}_000_0{camera}_x.jpg"
            for camera, split in enumerate(("train", "train", "test", "test"))
            for identity in (0, 1)
        ],
    ),
    "veri776": Layout(
        lambda root: load_reid("veri776", root),
        {
            f"{VERI}/name_train.txt": "0001_c001_0.jpg\n0002_c001_0.jpg\n",
            f"{VERI}/name_query.txt": "0001_c002_0.jpg\n",
            f"{VERI}/name_test.txt": "0001_c003_0.jpg\n",
            f"{VERI}/train_label.xml": XML,
        },
        [
            *(f"{VERI}/image_train/000{vehicle}_c001_0.jpg" for vehicle in (1, 2)),
            f"{VERI}/image_query/0001_c002_0.jpg",
            f"{VERI}/image_test/0001_c003_0.jpg",
        ],
    ),
}
CASES = [(name, file) for name, layout in LAYOUTS.items() for file in layout.lists]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layouts_are_good(name):
    assert LAYOUTS[name].read("", b"")


@pytest.mark.parametrize(("name", "file"), CASES)
def test_any_label_file(name, file):
    layout = LAYOUTS[name]
    parts = layout.lists[file].replace("\n", " \n ").replace(",", " , ").split(" ")
    words = st.sampled_from(parts) | st.text(string.printable + "\0\ufeff\x85\u2028é", max_size=6)
    lists = st.lists(words, max_size=12)
    texts = lists.map(" ".join) | lists.map(",".join) | st.text(max_size=40)

    @few
    @given(texts.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=60))
    def check(raw):
        given_or_refused(layout.read, file, raw)

    check()


@pytest.mark.parametrize(("name", "file"), CASES)
def test_a_label_file_with_one_change(name, file):
    """Closer to a real one: some bytes are put in place of others."""
    layout = LAYOUTS[name]
    good = layout.lists[file].encode()
    spans = st.tuples(st.integers(0, len(good)), st.integers(0, 6))
    odd = [b"\n", b"\r\n", b"\xef\xbb\xbf", b"..", b"/", b"9" * 30, b'"', b","]

    @few
    @given(spans, st.binary(max_size=4) | st.sampled_from(odd))
    def check(span, inserted):
        start, length = span
        given_or_refused(layout.read, file, good[:start] + inserted + good[start + length :])

    check()
