"""Archives that are damaged, or meant to do harm, are refused in a line that names archive and member."""

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dual_cross_attention.data import load_fgvc, load_reid
from dual_cross_attention.data.images import UnreadableImage, read_image
from dual_cross_attention.data.shards import archive as archive_module
from dual_cross_attention.data.shards.archive import members
from dual_cross_attention.data.shards.samples import samples
from dual_cross_attention.errors import InputError


def special(kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname, member.size = kind, target, size
    return member


@pytest.fixture
def good(jpeg) -> dict[str, bytes]:
    return {"0.jpg": jpeg(0), "0.cls": b"0", "1.jpg": jpeg(1), "1.cls": b"1\n"}


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def load_hostile(tmp_path, write_archive, good, refused) -> Callable[..., None]:
    """Loading must be refused with these words, and must write nothing but the index and its lock."""

    def load(content: dict | bytes, *words: object, good_first: bool = True) -> None:
        folder = tmp_path / "home" / "shards"
        write_archive(folder / "val-000000.tar", good)
        if isinstance(content, bytes):
            (folder / "train-000000.tar").write_bytes(content)
        else:
            write_archive(folder / "train-000000.tar", good | content if good_first else content)
        before = snapshot(tmp_path)
        with refused("shards: ", folder / "train-000000.tar", *words):
            load_fgvc("shards", folder)
        new = {path.name for path in snapshot(tmp_path).keys() - before.keys()}
        assert new <= {".dcal-index.lock"} | {path.name for path in folder.glob("val-*.index")}
        assert {path: before[path] for path in before} == {path: snapshot(tmp_path)[path] for path in before}

    return load


NAMES = ["../evil.jpg", "a/../../evil.jpg", "/tmp/evil.jpg", "//evil.jpg", "..", "a\\..\\evil.jpg", "./../evil.jpg"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out(load_hostile, jpeg, name):
    load_hostile({name: jpeg()}, name.replace("\\", "\\\\"), "not one that leads out")


@pytest.mark.parametrize(
    ("kind", "target", "said"),
    [
        (tarfile.SYMTYPE, "/etc/passwd", "a link"),
        (tarfile.LNKTYPE, "0.jpg", "a link"),
        (tarfile.LNKTYPE, "../../secret", "a link"),
        (tarfile.CHRTYPE, "", "a device"),
        (tarfile.BLKTYPE, "", "a device"),
        (tarfile.FIFOTYPE, "", "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "", "a sparse file"),
        (b"V", "", "of the type b'V'"),
    ],
)
def test_members_that_are_no_files(load_hostile, kind, target, said):
    load_hostile({"evil.jpg": special(kind, target)}, "evil.jpg", f"it is {said}")


def test_folders_and_hidden_files_are_passed_over(tmp_path, write_archive, good, jpeg):
    hidden = {"a": special(tarfile.DIRTYPE), "a/._0.jpg": b"mac", "__MACOSX.txt": b"", "readme.txt": b""}
    with_text = {"a/x.jpg": jpeg(), "a/x.cls": b"1", "a/x.txt": b"caption", "a/x.seg.png": b"another one"}
    for split in ("train", "val"):
        write_archive(
            tmp_path / f"{split}-0.tar", good | {k: v for k, v in hidden.items() if k != "readme.txt"} | with_text
        )
    data = load_fgvc("shards", tmp_path)
    assert [image.name for image in data.train.images] == ["0.jpg", "1.jpg", "a/x.jpg"]
    assert list(data.train.labels) == [0, 1, 1]


LABELS = {
    "no label": ({"2.jpg": b""}, "2.jpg", "KEY.cls", "KEY.json"),
    "no image": ({"2.cls": b"1"}, "/2:", "one image", "there are 0"),
    "two images": ({"2.jpg": b"", "2.png": b"", "2.cls": b"1"}, "/2:", "there are 2", "2.jpg, 2.png"),
    "key again": ({"2.jpg": b"", "2.cls": b"1", "0.png": b"", "0.txt": b""}, "/0:", "a key once", "next to each other"),
    "apart": ({"2.jpg": b"", "3.cls": b"1", "2.cls": b"1"}, "/2.jpg:", "there is none"),
    "word": ({"2.jpg": b"", "2.cls": b"bird"}, "2.cls", "whole number", "got 'bird'"),
    "negative": ({"2.jpg": b"", "2.cls": b"-1"}, "2.cls", "whole number", "got '-1'"),
    "long": ({"2.jpg": b"", "2.cls": b"1" * 19}, "2.cls", "whole number"),
    "no text": ({"2.jpg": b"", "2.cls": b"\xff\xfe1"}, "2.cls", "expected text in UTF-8"),
    "huge": ({"2.jpg": b"", "2.json": b" " * ((1 << 20) + 1)}, "2.json", "at most 1,048,576 bytes, got 1,048,577"),
    "no JSON": ({"2.jpg": b"", "2.json": b"{"}, "2.json", "cannot be read as JSON"),
    "a list": ({"2.jpg": b"", "2.json": b'["label"]'}, "2.json", "expected a JSON object, got ['label']"),
    "deep": ({"2.jpg": b"", "2.json": b"[" * 500_000}, "2.json", "nested too deeply"),
    "many digits": ({"2.jpg": b"", "2.json": b'{"label": ' + b"9" * 5000 + b"}"}, "2.json", "cannot be read as JSON"),
    "other names": ({"2.jpg": b"", "2.json": b'{"class": 1}'}, "2.json", 'expected "label"', "it has ['class']"),
    "fraction": ({"2.jpg": b"", "2.json": b'{"label": 1.0}'}, "2.json", 'expected "label"', "got 1.0"),
    "truth": ({"2.jpg": b"", "2.json": b'{"label": true}'}, "2.json", 'expected "label"', "got True"),
    "empty name": ({"2.jpg": b"", "2.json": b'{"label": ""}'}, "2.json", 'expected "label"', "got ''"),
    "mixed": ({"2.jpg": b"", "2.json": b'{"label": "a"}'}, "2.jpg", "every label as a number", "got 'a' after 0"),
    "beyond": ({"2.jpg": b"", "2.cls": b"1000000"}, None, "classes from 0 to at most 999,999", "got 1000000"),
}


@pytest.mark.parametrize("case", LABELS.values(), ids=LABELS)
def test_labels_that_cannot_be_used(load_hostile, case, tmp_path, refused, write_archive, good):
    added, *words = case
    if words[0] is None:  # said of the folder, not of a member
        write_archive(tmp_path / "val-0.tar", good)
        write_archive(tmp_path / "train-0.tar", good | added)
        with refused(tmp_path, *words[1:]):
            load_fgvc("shards", tmp_path)
    else:
        load_hostile(added, *words)


def test_a_member_twice(load_hostile, tmp_path, jpeg):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("0.jpg", jpeg(0)), ("0.jpg", jpeg(1)), ("0.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    load_hostile(file.getvalue(), "0.jpg", "expected a member once")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("identity", "absent"),  # a camera may be absent
        *((name, value) for name in ("identity", "camera") for value in (-1, 10**18, None, [1], {})),
    ],
)
def test_people_without_identity_or_camera(tmp_path, write_archive, jpeg, refused, name, value):
    said = {"identity": 1, "camera": 2} | {name: value}
    if value == "absent":
        del said[name]
    for split in ("train", "query", "gallery"):
        write_archive(tmp_path / f"{split}-0.tar", {"0.jpg": jpeg(), "0.json": json.dumps(said).encode()})
    with refused(tmp_path / "query-0.tar/0.json", f'expected "{name}" as a number'):
        load_reid("shards", tmp_path)


def bytes_of(members: dict[str, bytes], write_archive, tmp_path) -> bytes:
    return write_archive(tmp_path / "made.tar", members).read_bytes()


@pytest.fixture
def raw(good, write_archive, tmp_path) -> bytes:
    return bytes_of(good, write_archive, tmp_path)


@pytest.mark.parametrize(
    ("compress", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_compressed(load_hostile, raw, compress, kind):
    load_hostile(compress(raw), "expected a plain .tar", kind)


def test_truncated(load_hostile, raw):
    end = len(raw.rstrip(b"\0"))
    for length in (1, 300, 512, 600, 1024, 2048, (end // 512) * 512, (end // 512 + 1) * 512):
        load_hostile(raw[:length], "truncated" if length >= 512 else "it is none")
    load_hostile(b"", "it is none")


def test_something_else(load_hostile, raw, jpeg):
    for content in (b"<html>" * 500, jpeg() + bytes(2000), os.urandom(4096)):
        load_hostile(content, "header", "at byte 0")
    load_hostile(raw[:512] + b"\xff" * 512 + raw[512:], "header", "at byte")
    load_hostile(raw + bytes(1 << 20) + raw, "its end is marked at byte", "not several")


def with_size(raw: bytes, field: bytes) -> bytes:
    """The first member's header, with another size and the checksum that belongs to it."""
    header = bytearray(raw[:512])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + raw[512:]


@pytest.mark.parametrize(
    ("field", "word"),
    [
        (b"77777777777\0", "truncated"),
        (b"\x80" + bytes(3) + struct.pack(">q", 2**62), "expected a size in bytes"),
        (b"\xff" * 12, "expected a size in bytes, got -1"),
        (b"\x80" + b"\x7f" * 11, "expected a size in bytes"),
    ],
)
def test_sizes_beyond_the_archive(load_hostile, raw, field, word):
    load_hostile(with_size(raw, field), "0.jpg", word)


def test_a_image_of_gigabytes(tmp_path, write_archive, good, raw, refused):
    """Nothing is read, and nothing allocated: the file is sparse."""
    write_archive(tmp_path / "val-0.tar", good)
    path = tmp_path / "train-0.tar"
    with path.open("wb") as file:
        file.write(with_size(raw, b"%011o\0" % (3 * 2**30))[:512])
        file.truncate(512 + 3 * 2**30)
        file.seek(0, os.SEEK_END)
        file.write(bytes(1024))
    with refused(path, "0.jpg", "2,147,483,648 bytes", "3,221,225,472"):
        load_fgvc("shards", tmp_path)


def header(name: str, kind: bytes, size: int) -> bytes:
    member = special(kind, size=size)
    member.name = name
    return member.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE])
def test_an_extended_header_that_would_fill_the_memory(load_hostile, kind):
    load_hostile(header("evil", kind, 1 << 21) + bytes(1 << 22), "evil", "at most 1,048,576 bytes of header")


@pytest.mark.parametrize(
    "record", [b"12 path=a\n", b"9 path=a", b"x path=a\n", b"0 path=a\n", b"7 patha\n", b"-9 path=a\n"]
)
def test_damaged_extended_headers(load_hostile, raw, record):
    load_hostile(
        header("p", tarfile.XHDTYPE, len(record)) + record.ljust(512, b"\0") + raw, "expected an extended header"
    )


def pax(**records: str) -> bytes:
    return tarfile.TarInfo._create_pax_generic_header(records, tarfile.XHDTYPE, "utf-8")


def test_what_extended_headers_may_not_say(load_hostile, raw):
    load_hostile(pax(path="../../evil.jpg") + raw, "../../evil.jpg", "not one that leads out")
    load_hostile(pax(path="x" * 256) + raw, "a name of at most 255 bytes")
    load_hostile(pax(size="-5") + raw, "expected a size in bytes, got -5")
    load_hostile(pax(size="9" * 18) + raw, "truncated")
    load_hostile(pax(**{"GNU.sparse.size": "5"}) + raw, "it is a sparse file")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_format(tmp_path, write_archive, jpeg, form):
    stems = [f"{'folder/' * 12}{'n' * 90}", "é" * 60, "./with/a dot"]
    if form == tarfile.USTAR_FORMAT:
        stems = [stems[2], "f" * 100 + "/" + "n" * 90]
    content = {f"{stem}.{kind}": jpeg() if kind == "jpg" else b"1" for stem in stems for kind in ("jpg", "cls")}
    for split in ("train", "val"):
        write_archive(tmp_path / f"{split}-0.tar", content, form)
    images = load_fgvc("shards", tmp_path).train.images
    assert [image.name for image in images] == [f"{stem}.jpg".removeprefix("./") for stem in stems]
    assert {read_image(image).size for image in images} == {(12, 10)}


def test_members_are_where_tarfile_finds_them(tmp_path, write_archive, jpeg):
    content = {f"{'d/' * number}{'n' * number * 20}{number}.jpg": jpeg(number) for number in range(12)}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_archive(tmp_path / "a.tar", content, form)
        with path.open("rb") as file, tarfile.open(path) as theirs:
            ours = [(member.name, member.offset, member.size) for member in members(file, path)]
            assert ours == [(member.name, member.offset_data, member.size) for member in theirs]
            for member in members(file, path):
                with member.open() as opened:
                    assert opened.read() == content[member.name]


def test_archives_that_are_no_files(tmp_path, write_archive, good, refused):
    write_archive(tmp_path / "val-0.tar", good)
    os.mkfifo(tmp_path / "train-0.tar")
    with refused("expected a regular file"):
        load_fgvc("shards", tmp_path)


# --- images whose archive changes, or is not what its index says ---


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path, member: path.unlink(), "No such file"),
        (lambda path, member: os.truncate(path, member.offset + 10), "end at byte"),
        (lambda path, member: path.write_bytes(bytes(path.stat().st_size)), "has changed since its index"),
        (lambda path, member: path.write_bytes(b"\xff" * path.stat().st_size), "has changed since its index"),
    ],
)
def test_an_archive_that_changes(classified, tmp_path, change, reason):
    classified(tmp_path)
    member = load_fgvc("shards", tmp_path).train.images[0]
    change(member.archive, member)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(member)
    assert caught.value.path == f"{tmp_path}/train-000000.tar/0000.jpg"


def test_what_lies_elsewhere_in_the_archive_is_not_reached(classified, tmp_path):
    classified(tmp_path)
    member = load_fgvc("shards", tmp_path).train.images[0]
    for other in (
        member._replace(offset=member.offset + 512),
        member._replace(offset=0),
        member._replace(size=member.size + 1),
        member._replace(name="0001.jpg"),
    ):
        with pytest.raises(UnreadableImage, match="has changed"):
            read_image(other)
    with member.open() as file:
        assert (file.read(10_000), file.read(1), file.seek(0, os.SEEK_END)) == (file_bytes(member), b"", member.size)
        with pytest.raises(OSError):
            file.fileno()
        file.seek(-4, os.SEEK_CUR)
        assert file.read() == file_bytes(member)[-4:]
        with pytest.raises(ValueError):
            file.seek(-1)


def file_bytes(member) -> bytes:
    return member.archive.read_bytes()[member.offset :][: member.size]


# --- whatever is in an archive ---

quick = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@quick
@given(st.data())
def test_any_change_of_an_archive(tmp_path_factory, data):
    """Some bytes in place of others: samples that lie within the archive, or one line that refuses it."""
    folder = tmp_path_factory.mktemp("any")
    path = folder / "a.tar"
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("0.jpg", b"jpeg"), ("0.json", b'{"label": 1}'), ("é.jpg", b"x" * 700), ("é.cls", b"2")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    raw = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 7 * 512))
        new = data.draw(st.binary(max_size=12) | st.sampled_from([b"\0" * 512, b"7" * 12, b"../", b"5", b"x", b"L"]))
        raw[at : at + len(new)] = new
        if data.draw(st.booleans()):  # with the checksum that belongs to it, else few get beyond it
            block = at // 512 * 512
            head = bytearray(raw[block : block + 512])
            head[148:156] = b" " * 8
            head[148:156] = b"%06o\0 " % sum(head)
            raw[block : block + 512] = head
    path.write_bytes(raw)
    for task in ("fgvc", "reid"):
        try:
            for sample in samples(path, task):
                assert 512 <= sample.image.offset <= sample.image.offset + sample.image.size <= len(raw)
                assert ".." not in sample.image.name.split("/") and not sample.image.name.startswith("/")
        except InputError as error:
            assert len(f"{error}".splitlines()) == 1 and f"{path}" in f"{error}"


def test_the_limits_are_above_what_is_usual():
    assert archive_module.MAX_EXTENDED > 100 * archive_module.MAX_NAME
