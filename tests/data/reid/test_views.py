"""Files that list views by path: columns, the ends of paths, and rows that cannot be used."""

import pytest
from PIL import Image

from dual_cross_attention.data.crops import CroppedFile
from dual_cross_attention.data.reid.views import ViewList
from dual_cross_attention.data.shards.member import Member
from dual_cross_attention.errors import InputError


@pytest.fixture
def listed(tmp_path):
    """`listed(text)` reads such a file."""

    def read(text, notes=None):
        path = tmp_path / "views.csv"
        path.write_text(text)
        return ViewList(path, [] if notes is None else notes)

    return read


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    for place, name in enumerate(("query/a/1.jpg", "gallery/a/1.jpg", "gallery/b/2.jpg", "gallery/b/3.jpg")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes([place]))
    return root


@pytest.mark.parametrize(
    "text",
    [
        "path,view\nb/2.jpg,rear\nquery/a/1.jpg,front\ngallery/b/3.jpg,\n",
        "view;x;name\nrear;0;2.jpg\nfront;1;./query\\a\\1.jpg\n",
        "imageName\tviewpoint\n/data/gallery/b/2.jpg\trear\nquery/a/1.jpg\tfront\n",
    ],
)
def test_rows_are_the_ends_of_paths(listed, root, text):
    notes = []
    views = listed(text, notes)
    images = [root / name for name in ("gallery/b/3.jpg", "gallery/b/2.jpg", "gallery/a/1.jpg", "query/a/1.jpg")]
    assert views.of(images) == ["", "rear", "", "front"]
    assert views.num_unused == 0 and len(notes) == ("," not in text)


def test_the_longest_path_decides(listed, root):
    views = listed("path,view\n1.jpg,front\ngallery/a/1.jpg,rear\nelsewhere/1.jpg,top\n")
    assert views.of([root / "query/a/1.jpg", root / "gallery/a/1.jpg"]) == ["front", "rear"]
    assert views.num_unused == 1


def test_members_of_archives_crops_and_images_in_memory(listed, root):
    views = listed("path,view\nb/2.jpg,rear\n")
    crops = [CroppedFile(root / "gallery/b/2.jpg", (0, 0, 1, side)) for side in (1, 2)]
    assert views.of([Image.new("RGB", (2, 2)), *crops]) == ["", "rear", "rear"]
    views = listed("path,view\na.tar/000.jpg,rear\nb/2.jpg,front\n")
    members = [Member(root / "a.tar", 512, 1, name) for name in ("000.jpg", "gallery/b/2.jpg", "2.jpg")]
    assert views.of(members) == ["rear", "front", ""]


def test_a_name_alone_is_of_copies_only(listed, root):
    """As of VeRi-776, whose queries are in its gallery, too."""
    (root / "query/b").mkdir()
    (root / "query/b/2.jpg").write_bytes((root / "gallery/b/2.jpg").read_bytes())
    assert listed("path,view\n2.jpg,rear\n").of([root / "query/b/2.jpg", root / "gallery/b/2.jpg"]) == ["rear"] * 2
    views = listed("path,view\n1.jpg,rear\n")
    views.of([root / "query/a/1.jpg"])
    with pytest.raises(InputError, match=r"1\.jpg is the end .* several images"):
        views.of([root / "gallery/a/1.jpg"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,side\na.jpg,front\n", "names no view"),
        ("path,view\na.jpg,\n", "names no view"),
        ("view\nfront\n", "no path"),
        ("path,view\na.jpg,front\n./a.jpg,rear\n", "line 3.*rear.*front"),
        ("path,view\n,front\n", "path is empty"),
    ],
)
def test_what_cannot_be_used_is_refused(listed, text, says):
    with pytest.raises(InputError, match=says):
        listed(text)
