"""Every layout of both tasks, under every spelling of its root and in the copies that people have of it."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dual_cross_attention.data import load_fgvc, load_reid
from dual_cross_attention.data.folders import absolute
from dual_cross_attention.data.reid.market1501 import FOLDERS
from dual_cross_attention.data.reid.veri776 import SPLITS
from dual_cross_attention.data.shards.member import Member
from tests.data.reid.test_market1501 import DUKE, MARKET
from tests.test_hostile_files import make_aircraft, make_cars, make_cub, make_msmt17, make_people, make_veri776

SMALL = io.BytesIO()
Image.new("RGB", (4, 4)).save(SMALL, "JPEG")


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(SMALL.getvalue())
    return root


def market_like(name: str, folders: dict[str, list[str]]) -> Callable[[Path], Path]:
    return lambda root: files(root / name, *(f"{each}/{file}.jpg" for each, some in folders.items() for file in some))


def folders_of_people(root: Path) -> Path:
    names = [f"{split}/{name}/{c}_1.jpg" for split in ("train", "query", "gallery") for name in "ab" for c in "xy"]
    return files(root / "mine", *names)


def lists_of_people(root: Path) -> Path:
    (root / "mine").mkdir(parents=True)
    return make_people(root / "mine")


def write_archive(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def archives(task: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        for split in ("train", "val") if task == "fgvc" else ("train", "query", "gallery"):
            members = []
            for number in range(4):
                said = b'{"label": %d, "identity": "p%d", "camera": "%s"}' % (number % 2, number % 2, split.encode())
                members += [(f"{number}.jpg", SMALL.getvalue()), (f"{number}.json", said)]
            write_archive(root / "mine" / f"{split}-000000.tar", members)
        return root / "mine"

    return make


LAYOUTS: dict[tuple[str, str], Callable[[Path], Path]] = {
    ("fgvc", "cub"): make_cub,
    ("fgvc", "cars"): make_cars,
    ("fgvc", "aircraft"): lambda root: make_aircraft(root).parent,
    ("fgvc", "folder"): lambda root: files(root / "mine", *(f"{s}/{c}/1.jpg" for s in ("train", "val") for c in "ab")),
    ("fgvc", "shards"): archives("fgvc"),
    ("reid", "market1501"): market_like("Market-1501-v15.09.15", MARKET),
    ("reid", "dukemtmc"): market_like("DukeMTMC-reID", DUKE),
    ("reid", "msmt17"): make_msmt17,
    ("reid", "veri776"): make_veri776,
    ("reid", "folder"): folders_of_people,
    ("reid", "folder of lists"): lists_of_people,
    ("reid", "shards"): archives("reid"),
}
OFFICIAL = [layout for layout in LAYOUTS if not layout[1].startswith(("folder", "shards"))]
IDS = ["-".join(layout) for layout in LAYOUTS]


def contents(layout: tuple[str, str], data_root: object, own: Path) -> list[tuple]:
    """Each image of all splits, relative to the dataset's own folder, with label and camera; all are there."""
    task, name = layout
    data = (load_fgvc if task == "fgvc" else load_reid)(name.partition(" ")[0], data_root)
    splits = (data.train, data.test) if task == "fgvc" else (data.train, data.query, data.gallery)
    found = []
    for number, split in enumerate(splits):
        labels = split.labels if task == "fgvc" else split.identities
        for place, image in enumerate(split.images):
            path = image.archive if isinstance(image, Member) else image
            assert path.is_file() and path.is_absolute()
            inside = Path(os.path.realpath(path)).relative_to(os.path.realpath(own)).as_posix()
            at = image.offset if isinstance(image, Member) else 0
            found.append(
                (number, inside, at, int(labels[place]), None if task == "fgvc" else int(split.cameras[place]))
            )
    return found


def said(layout: tuple[str, str], data_root: object, found: Path) -> list[str]:
    """The lines that say that `found` is read, which is not the folder that was given."""
    task, name = layout
    data = (load_fgvc if task == "fgvc" else load_reid)(name.partition(" ")[0], data_root)
    return [line for line in data.warnings if line.startswith(f"{data.name}: {found} is read, found in ")]


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_every_spelling_of_a_root(tmp_path, monkeypatch, layout):
    """`in folder: what is typed there`; the own folder is home/data/NAME."""
    own = LAYOUTS[layout](tmp_path / "home/data")
    name, held = own.name, layout in OFFICIAL
    expected = contents(layout, own, own)
    assert len(expected) >= 4
    (own.parent / "beside").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mine").symlink_to(own)
    (tmp_path / "links" / "all").symlink_to(own.parent)
    monkeypatch.setenv("HOME", f"{tmp_path / 'home'}")
    typed = {
        own: [".", "./", f"../{name}", f"../../data/{name}/"],
        own.parent: [name, f"./{name}", f"{name}/", f"beside/../{name}", f"~/data/{name}", f"{own}/"],
        own.parent / "beside": [f"../{name}", f"../{name}/."],
        tmp_path: ["links/mine", "links/mine/", f"links/all/{name}", f"links/mine/../{name}"],
    }
    if held:
        typed[own] += [".."]
        typed[own.parent] += [".", "~/data", f"{own.parent}"]
        typed[own.parent / "beside"] += ["..", "../"]
        typed[tmp_path] += ["links/all", "links/mine/.."]
    for folder, roots in typed.items():
        monkeypatch.chdir(folder)
        for data_root in roots:
            assert contents(layout, data_root, own) == expected, (folder, data_root)


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_one_more_folder_around_it(tmp_path, monkeypatch, layout):
    own = LAYOUTS[layout](tmp_path / "made")
    expected = contents(layout, own, own)
    doubled = tmp_path / "data" / own.name / own.name
    doubled.parent.mkdir(parents=True)
    own.rename(doubled)
    (doubled.parent / "__MACOSX").mkdir()
    monkeypatch.chdir(tmp_path)
    for data_root in (doubled, doubled.parent, tmp_path / "data", f"data/{own.name}", "data"):
        assert contents(layout, data_root, doubled) == expected
        own_or_official = data_root == doubled or (
            layout in OFFICIAL and data_root in (doubled.parent, f"data/{own.name}")
        )
        assert len(said(layout, data_root, doubled)) == (not own_or_official)
    wrapped = tmp_path / "wrapped" / "any name (1)"
    wrapped.parent.mkdir()
    doubled.rename(wrapped)
    for data_root in (wrapped, wrapped.parent, "wrapped"):
        assert contents(layout, data_root, wrapped) == expected
        assert len(said(layout, data_root, wrapped)) == (data_root != wrapped)


@pytest.mark.parametrize("layout", OFFICIAL, ids=["-".join(layout) for layout in OFFICIAL])
def test_a_collection_with_a_folder_for_each(tmp_path, layout):
    for each in OFFICIAL:
        LAYOUTS[each](tmp_path / "-".join(each))
    own = next((tmp_path / "-".join(layout)).iterdir())
    assert contents(layout, tmp_path, own) == contents(layout, own, own)
    assert len(said(layout, tmp_path, own)) == 1 and not said(layout, own.parent, own)


@pytest.mark.parametrize(
    ("layout", "inner"),
    [
        (("fgvc", "cub"), "images"),
        (("fgvc", "cars"), "cars_train"),
        (("fgvc", "cars"), "cars_test"),
        (("fgvc", "cars"), "devkit"),
        (("fgvc", "aircraft"), "data/images"),
        (("fgvc", "folder"), "train"),
        (("fgvc", "folder"), "val"),
        *((("reid", name), split) for name in ("market1501", "dukemtmc") for split in FOLDERS.values()),
        *((("reid", "veri776"), split) for split, *_ in SPLITS.values()),
        *((("reid", "msmt17"), split) for split in ("train", "test")),
        *((("reid", "folder"), split) for split in ("train", "query", "gallery")),
    ],
)
def test_images_doubled_inside(tmp_path, layout, inner):
    own = LAYOUTS[layout](tmp_path)
    expected = [(*row[:1], Path(row[1]).name, *row[2:]) for row in contents(layout, own, own)]
    (own / inner).rename(own / "moved")
    (own / inner).mkdir()
    doubled = own / inner / Path(inner).name
    (own / "moved").rename(doubled)
    (own / inner / ".DS_Store").touch()
    assert len(said(layout, own, doubled)) == 1
    assert [(*row[:1], Path(row[1]).name, *row[2:]) for row in contents(layout, own, own)] == expected


def test_an_identity_with_the_name_of_its_split(tmp_path):
    """query/query/door_1.jpg is an image of the identity "query": no folder of identities is in it."""
    names = [f"{split}/{name}/{c}_1.jpg" for split in ("train", "gallery") for name in ("a", "query") for c in "xy"]
    data = load_reid("folder", files(tmp_path, *names, "query/query/x_1.jpg"))
    assert data.query.images == [tmp_path / "query/query/x_1.jpg"] and not said(("reid", "folder"), tmp_path, tmp_path)


def test_annotations_of_cars_in_the_devkit(tmp_path):
    own = make_cars(tmp_path)
    expected = contents(("fgvc", "cars"), own, own)
    (own / "cars_test_annos_withlabels.mat").rename(own / "devkit" / "cars_test_annos_withlabels.mat")
    assert contents(("fgvc", "cars"), own, own) == expected


def test_cars_are_what_torchvision_reads(tmp_path):
    from torchvision.datasets import StanfordCars

    own = make_cars(tmp_path)
    data = load_fgvc("cars", own)
    for split, mine in (("train", data.train), ("test", data.test)):
        theirs = StanfordCars(tmp_path, split, loader=Path)
        assert [theirs[i] for i in range(len(theirs))] == list(zip(mine.images, mine.labels, strict=True))
        assert theirs.classes == data.classes


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_a_pattern_of_archives(tmp_path, monkeypatch, task):
    own = LAYOUTS[task, "shards"](tmp_path)
    expected = contents((task, "shards"), own, own)
    (tmp_path / "link").symlink_to(own)
    for folder, roots in {
        own: ["train-{000000..000000}.tar", "./train-000000.tar", "../mine/train-{000000..000000}.tar"],
        tmp_path: ["mine/train-000000.tar", "~/mine/train-{000000..000000}.tar", "link/train-000000.tar"],
    }.items():
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HOME", f"{tmp_path}")
        for data_root in roots:
            assert contents((task, "shards"), data_root, own) == expected


def test_links_are_kept_but_for_what_leads_up_from_them(tmp_path, monkeypatch):
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/inner")
    monkeypatch.chdir(tmp_path)
    assert absolute(Path("link/a")) == tmp_path / "link/a"
    assert absolute(Path("link/../b")) == Path(os.path.realpath(tmp_path)) / "real/b"  # as the system has it
    assert absolute(Path("a/../b")) == tmp_path / "b"


def test_absolute_names_in_lists(tmp_path, monkeypatch):
    """They name the folder with links or without, whichever way data_root does."""
    own = lists_of_people(tmp_path)
    expected = contents(("reid", "folder"), own, own)
    (tmp_path / "link").symlink_to(own)
    for spelled, roots in ((own, ("mine", "link")), (tmp_path / "link", ("link",))):
        for split in ("train", "query", "gallery"):
            lines = (own / f"{split}.csv").read_text().splitlines()
            rows = [lines[0], *(f"{spelled}/{split}/{line.rpartition('/')[2]}" for line in lines[1:])]
            (own / f"{split}.csv").write_text("\n".join(rows))
        monkeypatch.chdir(tmp_path)
        for data_root in roots:
            assert contents(("reid", "folder"), data_root, own) == expected


def test_errors_show_what_was_typed(tmp_path, monkeypatch, refused):
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path / "birds")
    monkeypatch.setenv("HOME", f"{tmp_path}")
    for typed in ("../birds", "~/birds", "~/nothing", "../birds/../nothing"):
        with refused("cub", typed, tmp_path):
            load_fgvc("cub", typed)
    for empty in ("", " "):
        with refused("cub", "is empty", "variable"):
            load_fgvc("cub", empty)


def test_several_of_a_name(tmp_path, refused):
    for name in ("a", "b"):
        make_cub(tmp_path / name)
    with refused("CUB_200_2011", tmp_path / "a", tmp_path / "b", "one of"):
        load_fgvc("cub", tmp_path)
