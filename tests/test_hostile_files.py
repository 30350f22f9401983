"""Damaged and malicious files: each is refused in one line or read safely, and nothing in it is executed.

`pytest tests/test_hostile_files.py -q` counts them: a test is a file.
"""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from safetensors.torch import save_file

from dual_cross_attention.backbones.create import create_backbone
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.configs.yaml_files import read_yaml
from dual_cross_attention.data import ImageDataset, ImageList, load_fgvc, load_reid, test_transform
from dual_cross_attention.data.images import UnreadableImage, read_image
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.model_files import build_model, check_fits, read_model_file

linux = pytest.mark.skipif(sys.platform != "linux", reason="pipes, devices and names of any bytes")


def refusal(call: Callable, *arguments: object) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    message = f"{caught.value}"
    assert message and "\n" not in message and len(message) < 20_000
    return message


# --- images ---


def photograph(path: Path, side: int = 64, **options) -> bytes:
    """Noise, which no format makes small."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path.read_bytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, pixels: bytes = b"\0" * 100) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(100 * 2**20), 9)
SMALL_PIXELS = (b"\0" + b"\x80" * 24) * 8


def tiff(entries: list[tuple[int, int, int, int]], after: bytes = b"", following: int = 0) -> bytes:
    """Entries are (tag, type, count, value)."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return (
        b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + table + struct.pack("<I", following) + after
    )


def plain_tiff(width: int = 8, height: int = 8, offset: int = 200, length: int = 64, **more) -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, offset), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, length)]
    return tiff(entries, **more).ljust(200, b"\0") + b"\x80" * 64


def cut(suffix: str, share: float = 0.5, **options) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        whole = photograph(path.with_suffix(suffix), **options)
        path.with_suffix(suffix).unlink()
        path.write_bytes(whole[: int(len(whole) * share)])

    return make


def content(raw: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(raw)


def jpeg_of(width: int, height: int, orientation: int | None = None) -> Callable[[Path], None]:
    """A whole JPEG file, whose header claims another size."""

    def make(path: Path) -> None:
        exif = Image.Exif()
        if orientation:
            exif[0x0112] = orientation
        raw = bytearray(photograph(path, exif=exif))
        frame = raw.index(b"\xff\xc0")
        raw[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
        path.write_bytes(raw)

    return make


def gif_frame_beyond_its_canvas(path: Path) -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    path.write_bytes(screen + b"," + struct.pack("<HHHHB", 0, 0, 60000, 60000, 0) + b"\x02\x02\x4c\x01\0;")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8X")
        file.truncate(3 * 2**30)


def locked(path: Path) -> None:
    photograph(path)
    path.chmod(0)


WEBP = struct.pack("<I", (16382 | 16382 << 14))
HUGE_BMP = (
    b"BM" + struct.pack("<IHHI", 10**6, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 10**5, 10**5, 1, 24, *[0] * 6)
)
BAD_IMAGES = {
    "PNG of 100,000 x 100,000 pixels": content(png(100_000, 100_000)),
    "PNG of 200 Mpx": content(png(20_000, 10_000)),
    "PNG of no pixels": content(png(0, 0)),
    "JPEG of 65,535 x 65,535 pixels": jpeg_of(65_535, 65_535),
    "JPEG of 60,000 x 60,000 pixels on its side": jpeg_of(60_000, 60_000, orientation=6),
    "GIF of 65,535 x 65,535 pixels": content(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(20)),
    "GIF frame far beyond its canvas": gif_frame_beyond_its_canvas,
    "BMP of 100,000 x 100,000 pixels": content(HUGE_BMP),
    "TIFF of 100,000 x 100,000 pixels": content(plain_tiff(100_000, 100_000)),
    "TIFF with strips beyond its end": content(plain_tiff(offset=10**6)),
    "TIFF with a tag of 4 GB": content(tiff([(256, 4, 2**30, 8), (257, 4, 1, 8)])),
    "TIFF with tiles of 2 billion pixels": content(
        tiff([(256, 4, 1, 8), (257, 4, 1, 8), (322, 4, 1, 2**31 - 16), (323, 4, 1, 2**31 - 16), (324, 4, 1, 200)])
    ),
    "WebP of 16,383 x 16,383 pixels": content(b"RIFF\x30\0\0\0WEBPVP8L\x24\0\0\0\x2f" + WEBP + bytes(31)),
    "PPM of 100,000 x 100,000 pixels": content(b"P6 100000 100000 255\n" + bytes(50)),
    "PNG with a compressed text of 100 MB": content(png(8, 8, chunk(b"zTXt", b"a\0\0" + BOMB), pixels=SMALL_PIXELS)),
    "PNG with an international text of 100 MB": content(
        png(8, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB), pixels=SMALL_PIXELS)
    ),
    "PNG with a color profile of 100 MB": content(png(8, 8, chunk(b"iCCP", b"a\0\0" + BOMB), pixels=SMALL_PIXELS)),
    "PNG with a wrong checksum": content(png(8, 8, pixels=SMALL_PIXELS).replace(b"IHDR", b"IHDr", 1)),
    "PNG of rows that are not there": content(png(64, 64, pixels=SMALL_PIXELS)),
    "JPEG cut in the middle": cut(".jpg"),
    "JPEG cut near its end": cut(".jpg", 0.9),
    "progressive JPEG cut in the middle": cut(".jpg", progressive=True),
    "JPEG cut in its header": cut(".jpg", 0.05),
    "PNG cut in the middle": cut(".png"),
    "GIF cut in the middle": cut(".gif"),
    "BMP cut in the middle": cut(".bmp"),
    "TIFF cut in the middle": cut(".tif"),
    "compressed TIFF cut in the middle": cut(".tif", compression="tiff_lzw"),
    "WebP cut in the middle": cut(".webp"),
    "lossless WebP cut in the middle": cut(".webp", lossless=True),
    "PPM cut in the middle": cut(".ppm"),
    "no bytes at all": content(b""),
    "random bytes": content(np.random.default_rng(0).bytes(5000)),
    "random bytes after a JPEG's first": content(b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(5000)),
    "zeros": content(bytes(5000)),
    "HTML": content(b"<html><body>404 not found</body></html>"),
    "SVG": content(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'),
    "EPS, which PIL gives to Ghostscript": content(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) (w) file closefile showpage\n%%EOF\n"
    ),
    "a file of 3 GiB": sparse,
    "a folder": Path.mkdir,
    "nothing": lambda path: None,
    "a link to nothing": lambda path: path.symlink_to("gone.jpg"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a file without permission": locked,
}


@linux
@pytest.mark.parametrize("size", [None, (16, 16)], ids=["whole", "decoded smaller"])
@pytest.mark.parametrize("make", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image_is_named(tmp_path, make, size):
    path = tmp_path / "a.jpg"
    make(path)
    if root := make is locked and os.geteuid() == 0:
        os.seteuid(65534)  # root may read anything
    try:
        with pytest.raises(UnreadableImage) as caught:
            read_image(path, size)
    finally:
        if root:
            os.seteuid(0)
    assert (caught.value.path, bool(caught.value.reason)) == (f"{path}", True)
    assert f"{caught.value}".isprintable()


@linux
def test_bad_images_take_no_memory(tmp_path):
    """All of them in one process, whose memory hardly grows."""
    code = """
import resource, sys
from pathlib import Path
from dual_cross_attention.data.images import UnreadableImage, read_image
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    for size in (None, (16, 16)):
        try:
            read_image(path, size)
        except UnreadableImage:
            continue
print((peak() - before) // 1024)
"""
    for number, make in enumerate(BAD_IMAGES.values()):
        make(tmp_path / f"{number}.jpg")
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100, "MiB"


@pytest.mark.xfail(strict=True, reason="libjpeg fills in what is missing before an end marker, and PIL is not told")
def test_a_jpeg_with_an_end_marker_but_not_all_of_its_rows(tmp_path):
    jpeg_of(64, 4000)(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / "a.jpg")


def multi_frame(suffix: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
        frames[0].save(path.with_suffix(suffix), save_all=True, append_images=frames[1:])
        path.with_suffix(suffix).rename(path)

    return make


def odd_orientation(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    Image.new("RGB", (8, 8)).save(path, exif=exif)


ODD_IMAGES = {
    "animated GIF": multi_frame(".gif"),
    "TIFF of several pages": multi_frame(".tif"),
    "animated PNG": multi_frame(".png"),
    "animated WebP": multi_frame(".webp"),
    "TIFF whose pages go in a circle": content(plain_tiff(following=8)),
    "animated PNG that promises 2 billion frames": content(
        png(8, 8, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), pixels=SMALL_PIXELS)
    ),
    "JPEG of an orientation that does not exist": odd_orientation,
    "JPEG with damaged EXIF": lambda path: Image.new("RGB", (8, 8)).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "PNG of one pixel": content(png(1, 1, pixels=b"\0\1\2\3")),
    "PNG named .jpg": content(png(8, 8, pixels=SMALL_PIXELS)),
}


@pytest.mark.parametrize("make", ODD_IMAGES.values(), ids=ODD_IMAGES)
def test_odd_image_is_read(tmp_path, make):
    make(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg")
    assert image.mode == "RGB" and max(image.size) <= 8


def test_a_truncated_image_is_refused_even_with_LOAD_TRUNCATED_IMAGES(tmp_path, monkeypatch):
    cut(".jpg")(tmp_path / "a.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnreadableImage, match="truncated"):
        read_image(tmp_path / "a.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # as it was


NAMES = {
    "line break": b"two\nlines.jpg",
    "colon": b"a: b: c.jpg",
    "brackets": b"[red]a[bold].jpg",
    "escape sequence": b"\x1b[31mred.jpg",
    "no UTF-8": b"\xff\xfe.jpg",
    "right to left": "\u202egpj.exe.jpg".encode(),
    "backslash": b"a\\nb.jpg",
    "spaces": b"  a  b .jpg",
}


@linux
@pytest.mark.parametrize("good", [True, False], ids=["readable", "broken"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_strange_name(tmp_path, dcal, name, good):
    """An image of any name is read; a broken one is named exactly, and shown without harm."""
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            photograph(tmp_path / split / label / "good.png")
    path = tmp_path / "train" / "a" / os.fsdecode(name)
    path.write_bytes((tmp_path / "train" / "a" / "good.png").read_bytes() if good else b"broken")
    outcome = dcal("check-data", "--dataset=folder", "--data_root", tmp_path, "--json", tmp_path / "report.json")
    assert (outcome.status, outcome.err) == (0 if good else 1, "")
    assert all(line.isprintable() for line in outcome.out.splitlines())
    report = json.loads((tmp_path / "report.json").read_text())
    assert [found["path"] for found in report["bad"]] == ([] if good else [f"{path}"])
    images = ImageList([path, tmp_path / "train" / "a" / "good.png"], [0, 1])
    transform = test_transform((8, 8), (8, 8), (0.5,) * 3, (0.5,) * 3)
    found = ImageDataset(images, transform, training=True)[0]["unreadable"]
    assert [each.path for each in found] == ([] if good else [f"{path}"])


# --- weights ---


class Runs:
    """A pickle of it calls a function when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


def deflated(path: Path, inner: bytes | None = None) -> None:
    """A zip archive of a gigabyte of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            with archive.open(f"array{number}.npy" if path.suffix == ".npz" else f"archive/data/{number}", "w") as file:
                for _ in range(256):
                    file.write(bytes(2**18 if inner is None else len(inner)))


def safetensors(header: bytes, length: int | None = None, after: bytes = b"") -> Callable[[Path], None]:
    return lambda path: path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + after)


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def npz(path: Path, **arrays: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def npz_that_lies(path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    raw = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(64)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", raw)


def npz_with_a_tower_for_header(path: Path) -> None:
    header = b"(" * 9000 + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header)


def strided_bomb(path: Path) -> None:
    torch.save({"pos_embed": torch.as_strided(torch.zeros(1), (1, 10**6 + 1, 10**6), (0, 0, 0))}, path)


def legacy_claim(path: Path) -> None:
    """A few bytes whose storage claims terabytes."""
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    path.write_bytes(raw[:-20])


def overlapping_zip(path: Path) -> None:
    torch.save({"a": torch.zeros(3_000_000)}, path)
    raw = path.read_bytes()
    start = raw.index(b"PK\x01\x02")
    end = raw.rindex(b"PK\x05\x06")
    entries = raw[start:end]
    copies = entries * 40
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 40 * 5, 40 * 5, len(copies), start, 0)
    path.write_bytes(raw[:start] + copies + tail)


WEIGHTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "pickle in a zip": (".pth", lambda path: torch.save({"a": Runs(path.parent / "mark")}, path)),
    "pickle in a zip, .pt": (".pt", lambda path: torch.save(Runs(path.parent / "mark"), path)),
    "pickle in a zip, .bin": (".bin", lambda path: torch.save({"model": Runs(path.parent / "mark")}, path)),
    "pickle of the old format": (
        ".pth",
        lambda path: torch.save({"a": Runs(path.parent / "mark")}, path, _use_new_zipfile_serialization=False),
    ),
    "bare pickle": (".pth", lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "mark")))),
    "bare pickle, protocol 0": (".pt", lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "mark"), 0))),
    "bare pickle that builds with eval": (".pth", lambda path: path.write_bytes(b"cbuiltins\neval\n(S'1/0'\ntR.")),
    "pickle named .safetensors": (
        ".safetensors",
        lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "mark"))),
    ),
    "pickle named .npz": (".npz", lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "mark")))),
    "endless pickle": (".pth", lambda path: path.write_bytes(b"\x80\x02" + b"(" * 100_000)),
    "deep pickle": (".pth", lambda path: path.write_bytes(b"\x80\x02" + b"]" + b"]q\x00a" * 50_000 + b".")),
    "a whole module": (".pth", lambda path: torch.save(torch.nn.Linear(2, 2), path)),
    "a list": (".pth", lambda path: torch.save([1, 2, 3], path)),
    "a number": (".pth", lambda path: torch.save(3, path)),
    "keys that are numbers": (".pth", lambda path: torch.save({1: torch.zeros(2)}, path)),
    "values that are numbers": (".pth", lambda path: torch.save({"a": 10**100}, path)),
    "sparse tensors": (".pth", lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path)),
    "a tensor of 10^12 numbers in 4 bytes": (".pth", strided_bomb),
    "position embedding without axes": (".pth", lambda path: torch.save({"pos_embed": torch.tensor(1.0)}, path)),
    "position embedding of other axes": (".pth", lambda path: torch.save({"pos_embed": torch.ones(7, 3)}, path)),
    "patch embedding of other axes": (
        ".pth",
        lambda path: torch.save({"patch_embed.proj.weight": torch.ones(3, 7)}, path),
    ),
    "old format, cut": (".pth", legacy_claim),
    "zip archive, cut": (".pth", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100))),
    "zip bomb": (".pth", deflated),
    "overlapping zip bomb": (".pth", overlapping_zip),
    "zip bomb, .npz": (".npz", deflated),
    "array of objects": (".npz", lambda path: npz(path, a=np.array([Runs(path.parent / "mark")], dtype=object))),
    "array that claims 4 TB": (".npz", npz_that_lies),
    "array with a tower of brackets for a header": (".npz", npz_with_a_tower_for_header),
    "array named as no array is": (".npz", lambda path: npz(path, **{"../../a": np.zeros(2)})),
    "other arrays": (".npz", lambda path: npz(path, a=np.zeros(3))),
    "a text in an .npz": (".npz", lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "hello")),
    "no bytes": (".pth", content(b"")),
    "no bytes, .npz": (".npz", content(b"")),
    "no bytes, .safetensors": (".safetensors", content(b"")),
    "header of 2^63 bytes": (".safetensors", safetensors(b"{}", 2**63)),
    "header of 2^64 - 1 bytes": (".safetensors", safetensors(b"{}", 2**64 - 1)),
    "header longer than the file": (".safetensors", safetensors(b"{}", 1000)),
    "header that is no JSON": (".safetensors", safetensors(b"x" * 50)),
    "header that is no UTF-8": (".safetensors", safetensors(b"\xff" * 50)),
    "header of brackets": (".safetensors", safetensors(b"[" * 50_000)),
    "header nested deeply": (".safetensors", safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)),
    "tensors that overlap": (
        ".safetensors",
        safetensors(json.dumps({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}).encode(), after=bytes(12)),
    ),
    "tensors beyond the end": (
        ".safetensors",
        safetensors(json.dumps({"a": entry([2**40], 0, 2**42)}).encode(), after=bytes(12)),
    ),
    "tensors of other sizes than their shapes": (
        ".safetensors",
        safetensors(json.dumps({"a": entry([10**9, 10**9], 0, 8)}).encode(), after=bytes(8)),
    ),
    "offsets that run backwards": (
        ".safetensors",
        safetensors(json.dumps({"a": entry([2], 8, 0)}).encode(), after=bytes(8)),
    ),
    "an unknown type of number": (
        ".safetensors",
        safetensors(json.dumps({"a": entry([2], 0, 8, "X99")}).encode(), after=bytes(8)),
    ),
    "a folder": (".pth", Path.mkdir),
    "a pipe": (".pth", lambda path: os.mkfifo(path)),
    "a link to itself": (".safetensors", lambda path: path.symlink_to(path.name)),
}


@linux
@pytest.mark.parametrize(("suffix", "make"), WEIGHTS.values(), ids=WEIGHTS)
def test_bad_weights_are_refused(tmp_path, suffix, make):
    path = tmp_path / f"weights{suffix}"
    make(path)
    before = sorted(tmp_path.iterdir())
    small = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    assert str(path) in refusal(lambda: create_backbone("vit_tiny_patch16_224", 3, (16, 16), f"{path}", **small))
    assert not (tmp_path / "mark").exists()
    assert sorted(tmp_path.iterdir()) == before


# --- settings ---


YAML = {
    "calls a function": b"lr: !!python/object/apply:os.system ['touch mark']",
    "makes an object": b"lr: !!python/object/new:os.system ['touch mark']",
    "names a function": b"lr: !!python/name:os.system",
    "imports a module": b"lr: !!python/module:os",
    "billion laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        b"%c: &%c [%s]\n" % (105 - i, 105 - i, b",".join([b"*%c" % (106 - i if i else 97)] * 9)) for i in range(8)
    ),
    "an alias": b"lr: &x 1\nmin_lr: *x",
    "an alias of itself": b"backbone_kwargs: &x {a: *x}",
    "a merge key": b"a: &a {lr: 1}\n<<: *a",
    "lists in lists": b"lr: " + b"[" * 20_000 + b"]" * 20_000,
    "lists in lists, open": b"[" * 50_000,
    "mappings in mappings": b"backbone_kwargs: " + b"{a: " * 5_000 + b"1" + b"}" * 5_000,
    "block mappings in mappings": b"\n".join(b" " * i + b"a:" for i in range(400)),
    "huge": b"lr: 1\n" * 1_000_000,
    "a long word": b"dataset: " + b"x" * 90_000,
    "a long name": b"x" * 90_000 + b": 1",
    "a number of 5,000 digits": b"epochs: " + b"9" * 5000,
    "a hexadecimal number of 9,000 digits": b"epochs: 0x" + b"f" * 9000,
    "a number of 400 digits": b"epochs: " + b"9" * 400,
    "a date in month 99": b"dataset: 2001-99-99",
    "a date": b"dataset: 2001-01-01",
    "bytes": b"dataset: !!binary AAAA",
    "bad bytes": b"dataset: !!binary A",
    "a set": b"backbone_kwargs: !!set {a, b}",
    "no truth": b"download: !!bool perhaps",
    "no float": b"lr: !!float x",
    "no whole number": b"epochs: !!int ''",
    "half a surrogate": b'data_root: "\\ud800"\nepochs: x',
    "not UTF-8": b"lr: \xff",
    "UTF-16": "lr: 1".encode("utf-16"),
    "a NUL byte": b"lr: 1\0",
    "an escape sequence": b"lr: \x1b[31m",
    "two documents": b"lr: 1\n---\nlr: 2",
    "no text": bytes(range(256)),
    "a list": b"- 1",
    "a list as a name": b"? [1, 2]\n: 3",
    "a size of 10^9": b"img_size: 1000000000",
    "a size of 10^30": b"img_size: 1" + b"0" * 30,
    "epochs of 10^30": b"epochs: 1" + b"0" * 30,
    "infinite": b"lr: .inf",
    "not a number": b"lr: .nan",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_bad_settings_are_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_bytes(text)
    assert "settings.yaml" in refusal(parse_config, ["--config", "settings.yaml"]) or not text.startswith(b"lr: !!")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_our_own_settings_have_no_aliases(tmp_path):
    """A run's config.yaml is read back."""
    from dual_cross_attention.runs.run_folder import RunFolder

    for arguments in ([], ["--dataset=cub"], ["--task=reid"], ["--dataset=cub", "--resize_size=500", "--img_size=448"]):
        folder = RunFolder(tmp_path / "run")
        folder.write_config(parse_config(arguments))
        read_yaml(folder.config)


# --- model files ---


def make_model_file(path: Path, **header: str) -> None:
    config = parse_config(["--backbone_kwargs", '{"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}'])
    model = build_model(config, 2, pretrained=False)
    settings = asdict(config)
    metadata = {"config": json.dumps(settings), "classes": '["a", "b"]', "metrics": '{"epoch": 1}'}
    metadata |= {name: text.replace("SETTINGS", json.dumps(settings)[1:-1]) for name, text in header.items()}
    save_file(model.state_dict(), path, {name: text for name, text in metadata.items() if text != "DROP"})


def open_model_file(path: Path) -> None:
    """As `read_model` does."""
    state, config, classes, *_ = read_model_file(path)
    with torch.device("meta"):
        check_fits(build_model(config, len(classes), pretrained=False), state, path)


PREPROCESSING = (
    '{"img_size": [64, 64], "resize": [70, 70], "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], '
    '"interpolation": "bicubic"}'
)
CALIBRATION = (
    '{"format_version": 2, "answers": {"sa": {"temperature": 1.5, "score": "probability", "threshold": 0.25, '
    '"kept": 0.95}}, "keep": 0.95, "images": 300, "dataset": "folder", "split": null, "data": "00ff", '
    '"date": "2025-01-31"}'
)
HEADERS = {
    "no settings": {"config": "DROP"},
    "no classes": {"classes": "DROP"},
    "no metrics": {"metrics": "DROP"},
    "settings that are no JSON": {"config": "{"},
    "settings that are a list": {"config": "[]"},
    "settings nested deeply": {"config": '{"a":' * 100_000},
    "settings nested as deep as JSON goes": {"config": '{"lr":' * 900 + "1" + "}" * 900},
    "lists nested as deep as JSON goes": {"config": '{SETTINGS, "lr": ' + "[" * 900 + "]" * 900 + "}"},
    "an unknown setting": {"config": '{SETTINGS, "extra": 1}'},
    "a setting of another type": {"config": '{SETTINGS, "epochs": {"a": 1}}'},
    "a number of 10,000 digits": {"config": '{SETTINGS, "epochs": ' + "9" * 10_000 + "}"},
    "a number of 4,000 digits": {"config": '{SETTINGS, "epochs": ' + "9" * 4_000 + "}"},
    "a size of 10^9": {"config": '{SETTINGS, "img_size": 1000000000}'},
    "a size of 4096": {"config": '{SETTINGS, "img_size": 4096}'},
    "a size of no pixels": {"config": '{SETTINGS, "img_size": []}'},
    "a task that is a list": {"config": '{SETTINGS, "task": ["fgvc"]}'},
    "a depth of 10^9": {"config": '{SETTINGS, "backbone_kwargs": {"depth": 1000000000}}'},
    "a width of 10^9": {"config": '{SETTINGS, "backbone_kwargs": {"embed_dim": 1000000000}}'},
    "a width of 99,999": {"config": '{SETTINGS, "backbone_kwargs": {"embed_dim": 99999, "num_heads": 3}}'},
    "a patch of no pixels": {"config": '{SETTINGS, "backbone_kwargs": {"patch_size": 0}}'},
    "no heads": {"config": '{SETTINGS, "backbone_kwargs": {"num_heads": 0}}'},
    "a layer that does not exist": {"config": '{SETTINGS, "backbone_kwargs": {"norm_layer": "nope"}}'},
    "a checkpoint to load": {"config": '{SETTINGS, "backbone_kwargs": {"checkpoint_path": "evil.pth"}}'},
    "weights to fetch": {"config": '{SETTINGS, "backbone_kwargs": {"pretrained_cfg": "evil"}}'},
    "a giant backbone": {"config": '{SETTINGS, "backbone": "vit_giant_patch14_224", "img_size": 224}'},
    "a backbone of the hub": {"config": '{SETTINGS, "backbone": "hf-hub:evil/model"}'},
    "a backbone of this machine": {"config": '{SETTINGS, "backbone": "local-dir:/etc"}'},
    "a local ratio that is not": {"config": '{SETTINGS, "local_ratio": NaN}'},
    "ten million classes": {"classes": "[" + '"",' * 10_000_000 + '""]'},
    "classes that are numbers": {"classes": "[1, 2]"},
    "classes that are a number": {"classes": "1000000000"},
    "classes nested deeply": {"classes": "[" * 100_000},
    "one class": {"classes": '["a"]'},
    "no class": {"classes": "[]"},
    "three classes": {"classes": '["a", "b", "c"]'},
    "metrics that are a list": {"metrics": "[]"},
    "metrics that are text": {"metrics": '{"epoch": "x"}'},
    "preprocessing that is no JSON": {"preprocessing": "{"},
    "preprocessing nested deeply": {"preprocessing": "[" * 100_000},
    "preprocessing that is a list": {"preprocessing": "[]"},
    "preprocessing of another size": {"preprocessing": PREPROCESSING.replace("[64, 64]", "[32, 32]")},
    "preprocessing of 10^9 pixels": {"preprocessing": PREPROCESSING.replace("[70, 70]", "[1000000000, 1000000000]")},
    "a resize below the crop": {"preprocessing": PREPROCESSING.replace("[70, 70]", "[60, 70]")},
    "a resize of text": {"preprocessing": PREPROCESSING.replace("[70, 70]", '["70", "70"]')},
    "a mean that is NaN": {"preprocessing": PREPROCESSING.replace("0.4", "NaN")},
    "a standard deviation of 0": {"preprocessing": PREPROCESSING.replace("0.2", "0")},
    "two channels": {"preprocessing": PREPROCESSING.replace("0.4, 0.4, 0.4", "0.4, 0.4")},
    "another interpolation": {"preprocessing": PREPROCESSING.replace("bicubic", "os.system")},
    "calibration that is no JSON": {"calibration": "{"},
    "calibration that is a list": {"calibration": "[]"},
    "calibration nested deeply": {"calibration": "[" * 100_000},
    "calibration of other things": {"calibration": '{"a": 1}'},
    "calibration of a later version": {"calibration": CALIBRATION.replace("2,", "99,", 1)},
    "a temperature of NaN": {"calibration": CALIBRATION.replace("1.5", "NaN")},
    "a temperature of text": {"calibration": CALIBRATION.replace("1.5", '"1.5"')},
    "a temperature of 0": {"calibration": CALIBRATION.replace("1.5", "0")},
    "a negative temperature": {"calibration": CALIBRATION.replace("1.5", "-1.5")},
    "a temperature of 10^-300": {"calibration": CALIBRATION.replace("1.5", "1e-300")},
    "a temperature of 10,000 digits": {"calibration": CALIBRATION.replace("1.5", "9" * 10_000)},
    "a temperature of 400 digits": {"calibration": CALIBRATION.replace("1.5", "9" * 400)},
    "a threshold that is infinite": {"calibration": CALIBRATION.replace("0.25", "Infinity")},
    "another score": {"calibration": CALIBRATION.replace("probability", "os.system")},
    "a score that is a list": {"calibration": CALIBRATION.replace('"probability"', "[]")},
    "a share of 2": {"calibration": CALIBRATION.replace("0.95", "2")},
    "answers that are a list": {"calibration": CALIBRATION.replace('s": {', 's": [{', 1).replace("}}", "}}]")},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_bad_model_file_is_refused(tmp_path, header):
    make_model_file(tmp_path / "best.safetensors", **header)
    refusal(open_model_file, tmp_path / "best.safetensors")


def test_a_good_model_file_is_read(tmp_path):
    for header in ({}, {"preprocessing": PREPROCESSING, "calibration": CALIBRATION}):
        make_model_file(tmp_path / "best.safetensors", **header)
        open_model_file(tmp_path / "best.safetensors")


# --- label files ---


def make_cub(root: Path) -> Path:
    """Two classes with two images each, one of them to train on."""
    folder = root / "CUB_200_2011"
    names = ["001.A/a.jpg", "001.A/b.jpg", "002.B/c.jpg", "002.B/d.jpg"]
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(folder / "images" / name)
    (folder / "classes.txt").write_text("1 001.A\n2 002.B\n")
    (folder / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (folder / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 2\n")
    (folder / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n4 0\n")
    return folder


def make_aircraft(root: Path) -> Path:
    folder = root / "fgvc-aircraft-2013b" / "data"
    (folder / "images").mkdir(parents=True)
    for number in (1, 2, 3, 4):
        photograph(folder / "images" / f"{number}.jpg")
    (folder / "variants.txt").write_text("A1\nB 2\n")
    (folder / "images_variant_trainval.txt").write_text("1 A1\n2 B 2\n")
    (folder / "images_variant_test.txt").write_text("3 A1\n4 B 2\n")
    return folder


def make_people(root: Path) -> Path:
    """The `folder` kind of re-identification, by CSV files."""
    for split in ("train", "query", "gallery"):
        lines = ["path,identity,camera"]
        for identity in ("x", "y"):
            name = f"{split}/{identity}.png"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            photograph(root / name)
            lines.append(f"{name},{identity},{split}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def make_msmt17(root: Path) -> Path:
    folder = root / "MSMT17_V1"
    for split, files in (("train", ("list_train", "list_val")), ("test", ("list_query", "list_gallery"))):
        for camera, name in enumerate(files, 1):
            listed = []
            for identity in (0, 1):
                image = f"{identity:04}/{identity:04}_000_{camera:02}_x.jpg"
                (folder / split / image).parent.mkdir(parents=True, exist_ok=True)
                photograph(folder / split / image)
                listed.append(f"{image} {identity}\n")
            (folder / f"{name}.txt").write_text("".join(listed))
    return folder


def make_veri776(root: Path) -> Path:
    folder = root / "VeRi"
    for camera, (split, names) in enumerate((("train", "train"), ("query", "query"), ("test", "test")), 1):
        (folder / f"image_{split}").mkdir(parents=True)
        listed = [f"{vehicle:04}_c{camera:03}_0.jpg" for vehicle in (1, 2)]
        for name in listed:
            photograph(folder / f"image_{split}" / name)
        (folder / f"name_{names}.txt").write_text("\n".join(listed) + "\n")
        item = '<Item imageName="{}" vehicleID="{}" cameraID="c00{}"/>'
        items = "".join(item.format(name, name[:4], camera) for name in listed)
        if split != "query":
            text = f"<?xml version='1.0' encoding='gb2312'?><TrainingImages><Items>{items}</Items></TrainingImages>"
            (folder / f"{split}_label.xml").write_text(text)
    return folder


def make_cars(root: Path) -> Path:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"cars_{split}").mkdir()
        for number in (1, 2):
            photograph(folder / f"cars_{split}" / f"{number}.jpg")
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["A", "B"], dtype=object)})
    for name in ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"):
        savemat(folder / name, {"annotations": car_annotations([("1.jpg", 1), ("2.jpg", 2)])})
    return folder


def car_annotations(rows: list[tuple]) -> np.ndarray:
    return np.array([(label, name) for name, label in rows], dtype=[("class", object), ("fname", object)])


MAKE = {
    "cub": make_cub,
    "aircraft": make_aircraft,
    "cars": make_cars,
    "folder": make_people,
    "msmt17": make_msmt17,
    "veri776": make_veri776,
}


def load(name: str, root: Path) -> object:
    return (load_fgvc if name in ("cub", "aircraft", "cars") else load_reid)(name, root)


@pytest.mark.parametrize("name", MAKE)
def test_good_labels_are_read(tmp_path, name):
    MAKE[name](tmp_path)
    load(name, tmp_path)


LISTS = {
    "cub": ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"],
    "aircraft": ["variants.txt", "images_variant_trainval.txt", "images_variant_test.txt"],
    "cars": ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"],
    "folder": ["train.csv", "query.csv", "gallery.csv"],
    "msmt17": ["list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt"],
    "veri776": ["name_train.txt", "name_query.txt", "name_test.txt", "train_label.xml", "test_label.xml"],
}


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


DAMAGE = {
    "empty": rewritten(lambda raw: b""),
    "not UTF-8": rewritten(lambda raw: raw + b"\xff\xfe\xfd\n"),
    "NUL bytes": rewritten(lambda raw: raw[:-2] + b"\0\0" + raw[-2:]),
    "random bytes": rewritten(lambda raw: np.random.default_rng(0).bytes(500)),
    "another first line": rewritten(lambda raw: b"word\n" + raw),
    "its last line twice": rewritten(lambda raw: raw + raw.splitlines(keepends=True)[-1]),
    "a folder": replaced(Path.mkdir),
    "a pipe": replaced(lambda path: os.mkfifo(path)),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
}


@linux
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in LISTS.items() for file in files])
def test_damaged_labels_are_refused(tmp_path, name, file, damage):
    path = MAKE[name](tmp_path) / file
    DAMAGE[damage](path)
    if (file, damage) == ("variants.txt", "another first line"):  # a variant without images
        assert load(name, tmp_path).classes == ["word", "A1", "B 2"]
    elif file.startswith("name_") and damage == "another first line":
        assert any("1 of the 3 images" in warning for warning in load(name, tmp_path).warnings)
    else:
        message = refusal(load, name, tmp_path)
        assert path.name in message or "split is empty" in message or "two classes" in message


FINE = {
    "Windows line ends": rewritten(lambda raw: raw.replace(b"\n", b"\r\n")),
    "a byte order mark": rewritten(lambda raw: b"\xef\xbb\xbf" + raw),
    "no last line end": rewritten(lambda raw: raw.rstrip(b"\n")),
    "blank lines at the end": rewritten(lambda raw: raw + b"\n\n"),
}


@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
@pytest.mark.parametrize(
    ("name", "file"),
    [(name, file) for name, files in LISTS.items() for file in files if file.endswith((".txt", ".csv"))],
)
def test_labels_of_another_system_are_read(tmp_path, name, file, change):
    folder = MAKE[name](tmp_path)
    expected = load(name, tmp_path)
    change(folder / file)
    assert load(name, tmp_path) == expected


OUTSIDE = ["../../secret.jpg", "/etc/passwd", "a/../../../secret.jpg", "..", "//etc/passwd"]
PATHS = {
    "cub": ("images.txt", "001.A/b.jpg", "{}"),
    "aircraft": ("images_variant_test.txt", "3 A1", "{} A1"),
    "folder": ("query.csv", "query/x.png,", "{},"),
    "msmt17": ("list_query.txt", "0001/0001_000_01_x.jpg", "{}"),
    "veri776": ("name_query.txt", "0001_c002_0.jpg", "{}"),
}


@pytest.mark.parametrize(
    ("name", "outside"),
    [(name, outside) for name in [*PATHS, "cars"] for outside in OUTSIDE if (name, outside) != ("aircraft", "..")],
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, name, outside):
    folder = MAKE[name](tmp_path)
    if name == "cars":
        from scipy.io import savemat

        rows = car_annotations([(outside, 1), ("2.jpg", 2)])
        savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})
    else:
        file, old, new = PATHS[name]
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new.format(outside)))
    message = refusal(load, name, tmp_path)
    assert "inside of" in message


@pytest.mark.parametrize("name", MAKE)
def test_a_linked_image_may_be_anywhere(tmp_path, name):
    folder = MAKE[name](tmp_path / "data")
    image = next(path for path in sorted(folder.rglob("*")) if path.suffix in (".jpg", ".png"))
    image.rename(tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    load(name, tmp_path / "data")


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 9))
XML = {
    "billion laughs": f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]><x>&l8;</x>',
    "a file of the system": '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><x>&f;</x>',
    "an address": '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><x/>',
    "in UTF-7": '<?xml version="1.0" encoding="utf-7"?>+ADwAIQ-DOCTYPE x [+ADwAIQ-ENTITY a "b">]><x>&a;</x>',
    "an unknown encoding": '<?xml version="1.0" encoding="nope"?><x/>',
    "a codec that is no encoding": '<?xml version="1.0" encoding="zip"?><x/>',
    "an encoding that always fails": '<?xml version="1.0" encoding="undefined"?><x/>',
    "half a surrogate": '<?xml version="1.0" encoding="unicode_escape"?><x a="\\ud800"/>',
    "an entity that is not declared": "<x>&a;</x>",
    "cut": "<TrainingImages><Items><Item imageName=",
    "open elements": "<x>" * 10_000,
    "an Item without a vehicle": '<x><Item imageName="a.jpg" cameraID="c001"/></x>',
    "a vehicle of 9,000 digits": f'<x><Item imageName="0001_c001_0.jpg" vehicleID="{"9" * 9000}" cameraID="c001"/></x>',
    "another vehicle than the name": '<x><Item imageName="0001_c001_0.jpg" vehicleID="0002" cameraID="c001"/></x>',
}


@pytest.mark.parametrize("text", XML.values(), ids=XML)
def test_bad_xml_is_refused(tmp_path, text):
    folder = make_veri776(tmp_path)
    (folder / "train_label.xml").write_text(text)
    assert "train_label.xml" in refusal(load, "veri776", tmp_path)


NUMBERS = {
    "msmt17": ("list_query.txt", "0001_000_01_x.jpg 1", "0001_000_01_x.jpg " + "9" * 5000),
    "cub: an image without a label": ("image_class_labels.txt", "4 2\n", ""),
    "cub: a label without an image": ("image_class_labels.txt", "4 2\n", "4 2\n5 2\n"),
    "cub: an unknown class": ("image_class_labels.txt", "4 2\n", "4 3\n"),
    "cub: another split": ("train_test_split.txt", "4 0\n", "4 2\n"),
    "cub: an image of two ids": ("images.txt", "002.B/d.jpg", "002.B/c.jpg"),
    "cub: a class without a name": ("classes.txt", "2 002.B", "2"),
    "aircraft: an unknown variant": ("images_variant_test.txt", "4 B 2", "4 C"),
    "folder: too many fields": ("query.csv", "query/x.png,x,", "query/x.png,x,y,"),
    "folder: too few fields": ("query.csv", "query/x.png,x,query", "query/x.png,x"),
    "folder: an open quote": ("query.csv", "query/x.png", '"query/x.png'),
    "folder: another header": ("query.csv", "identity", "person"),
    "folder: a column twice": ("query.csv", "path,identity,camera", "path,path,identity,camera"),
    "folder: an image that is not there": ("query.csv", "query/x.png", "query/z.png"),
    "msmt17: no identity": ("list_query.txt", "0001_000_01_x.jpg 1", "0001_000_01_x.jpg one"),
    "msmt17: an image twice": ("list_query.txt", "0001/0001_000_01_x.jpg", "0000/0000_000_01_x.jpg"),
    "veri776: an image twice": ("name_query.txt", "0002_c002_0.jpg", "0001_c002_0.jpg"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_wrong_labels_are_refused(tmp_path, case):
    name, (file, old, new) = case.partition(":")[0], NUMBERS[case]
    folder = MAKE[name](tmp_path)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    refusal(load, name, tmp_path)
