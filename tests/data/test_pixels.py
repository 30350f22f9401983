"""Pixels of every depth: the right 8-bit values, or a refusal that names the range; TIFFs are written by hand."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.data import UnreadableImage, read_image
from dual_cross_attention.data.validation import look_at
from tests.helpers import any_says


def tiff(path: Path, raw: bytes, bits: int, kind: int, width: int = 4, *, order: str = "<", zero: int = 1) -> Path:
    """One row of one channel, uncompressed.

    Args:
        kind: sample format: 1 unsigned, 2 signed, 3 floats.
        zero: 0 is black (1) or white (0).
    """
    entries = [(256, 4, width), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, zero), (273, 4, 200)]
    entries += [(277, 3, 1), (278, 4, 1), (279, 4, len(raw)), (339, 3, kind)]
    table = b"".join(
        struct.pack(f"{order}HHI", tag, type_, 1) + struct.pack(f"{order}{'HH' if type_ == 3 else 'I'}", *values)
        for tag, type_, value in entries
        for values in [(value, 0) if type_ == 3 else (value,)]
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    path.write_bytes((head + table + bytes(4)).ljust(200, b"\0") + raw)
    return path


def big_tiff(path: Path, raw: bytes, bits: int, kind: int, width: int = 4) -> Path:
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, 1), (273, 400), (277, 1), (278, 1)]
    entries += [(279, len(raw)), (339, kind)]
    table = b"".join(struct.pack("<HHQQ", tag, 16, 1, value) for tag, value in entries)
    head = b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, len(entries))
    path.write_bytes((head + table + bytes(8)).ljust(400, b"\0") + raw)
    return path


def values(path: Path | Image.Image) -> list[int]:
    """Of one row in RGB, whose channels are equal."""
    pixels = np.asarray(read_image(path))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def refusal(path: Path | Image.Image) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    return caught.value.reason


FLOATS = np.array([0, 0.25, 0.5, 1], dtype="<f4")


def test_floats_from_0_to_1(tmp_path):
    expected = [0, 64, 128, 255]  # 63.75 and 127.5 rounded
    Image.fromarray(FLOATS[None]).save(tmp_path / "a.tif")
    Image.fromarray(FLOATS[None]).save(tmp_path / "a.pfm")
    (tmp_path / "a.pfm").rename(tmp_path / "a.ppm")
    for source in (
        tmp_path / "a.tif",
        tmp_path / "a.ppm",
        tiff(tmp_path / "le.tif", FLOATS.tobytes(), 32, 3),
        tiff(tmp_path / "be.tif", FLOATS.astype(">f4").tobytes(), 32, 3, order=">"),
        big_tiff(tmp_path / "big.tif", FLOATS.tobytes(), 32, 3),
        Image.fromarray(FLOATS[None]),
    ):
        assert values(source) == expected


def test_a_float_image_keeps_its_levels(tmp_path):
    ramp = np.linspace(0, 1, 4800, dtype=np.float32).reshape(60, 80)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    read = np.asarray(read_image(tmp_path / "a.tif"))[..., 0]
    assert np.unique(read).size == 256
    assert np.abs(read / 255 - ramp).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([0, 1, 255, 7], None),  # whole numbers are kept
        ([0, 0.5, 2, 3], ["0 to 3"]),
        ([0, 1, 255, 7.5], ["0 to 255"]),
        ([0, 1, 256, 7], ["0 to 256"]),
        ([-0.5, 0, 0.5, 1], ["-0.5 to 1"]),
        ([0, np.nan, 0.5, 1], ["NaN", "0 to 1"]),
        ([np.nan] * 4, ["NaN"]),
        ([0, np.inf, 0.5, 1], ["inf"]),
    ],
)
def test_other_floats(tmp_path, row, words):
    path = tiff(tmp_path / "a.tif", np.array(row, dtype="<f4").tobytes(), 32, 3)
    if words is None:
        assert values(path) == row
    else:
        reason = refusal(path)
        assert all(word in reason for word in ["floats", *words])


def test_16_bits_keep_the_upper_8(tmp_path):
    row = np.array([[0, 255, 40_000, 65_535]], dtype=np.uint16)
    expected = [0, 0, 40_000 // 256, 255]
    for suffix in ("png", "tif", "ppm"):
        Image.fromarray(row).save(tmp_path / f"a.{suffix}")
        assert values(tmp_path / f"a.{suffix}") == expected
    assert values(tiff(tmp_path / "be.tif", row.astype(">u2").tobytes(), 16, 1, order=">")) == expected
    assert values(Image.fromarray(row)) == expected


def test_16_bits_in_color(tmp_path):
    """PIL reads the upper 8 bits of each channel."""
    raw = np.array([[0x1234, 0x80FF, 0xFF00]], dtype=">u2").tobytes()
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + raw))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (0x12, 0x80, 0xFF)


def test_12_bits(tmp_path):
    row = [0, 1000, 2048, 4095]
    pairs = zip(row[::2], row[1::2], strict=True)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    assert values(tiff(tmp_path / "a.tif", packed, 12, 1)) == [0, 1000 // 16, 128, 255]


@pytest.mark.parametrize(("bits", "top"), [(8, 127), (16, 32_767)])
def test_signed_integers(tmp_path, bits, top):
    for order in "<>" if bits == 16 else "<":
        kind = f"{order}i{bits // 8}"
        good = np.array([0, 1, 100, top], dtype=kind)
        path = tiff(tmp_path / "good.tif", good.tobytes(), bits, 2, order=order)
        assert values(path) == [int(value) * 255 // top for value in good]
        path = tiff(tmp_path / "bad.tif", np.array([-5, 0, 30, top], dtype=kind).tobytes(), bits, 2, order=order)
        reason = refusal(path)
        assert f"{bits}-bit signed integers" in reason and f"-5 to {top:,}" in reason


def test_32_bit_integers(tmp_path):
    for number, kind in enumerate(("<u4", "<i4"), start=1):
        good = np.array([0, 5, 254, 255], dtype=kind)
        assert values(tiff(tmp_path / "good.tif", good.tobytes(), 32, number)) == good.tolist()
        bad = np.array([0, 5, 254, 70_000], dtype=kind)
        assert "0 to 70,000" in refusal(tiff(tmp_path / "bad.tif", bad.tobytes(), 32, number))
    largest = np.array([0, 5, 254, 2**32 - 1], dtype="<u4")
    assert "4,294,967,295" in refusal(tiff(tmp_path / "bad.tif", largest.tobytes(), 32, 1))
    assert "-1 to" in refusal(tiff(tmp_path / "bad.tif", largest.tobytes(), 32, 2))
    assert "0 to 70,000" in refusal(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)))


def test_where_0_is_white(tmp_path):
    assert values(tiff(tmp_path / "8.tif", bytes([0, 5, 100, 255]), 8, 1, zero=0)) == [255, 250, 155, 0]
    row = np.array([0, 300, 40_000, 65_535], dtype="<u2")
    assert values(tiff(tmp_path / "16.tif", row.tobytes(), 16, 1, zero=0)) == [255, 254, 255 - 40_000 // 256, 0]
    assert values(tiff(tmp_path / "f.tif", FLOATS.tobytes(), 32, 3, zero=0)) == [255, 191, 127, 0]


@pytest.mark.parametrize(("bits", "kind"), [(64, 3), (16, 3), (64, 1), (32, 5)])
def test_what_pil_does_not_read_is_called_what_it_is(tmp_path, bits, kind):
    reason = refusal(tiff(tmp_path / "a.tif", bytes(4 * bits // 8), bits, kind))
    assert "TIFF" in reason and "pixels" in reason


def test_premultiplied_alpha(tmp_path):
    """A gray TIFF with associated alpha: 60 of an alpha of 128 over white."""
    image = Image.new("LA", (4, 1), (120, 128))
    assert values(image.convert("La")) == pytest.approx([255 - 128 + 60] * 4, abs=2)


def test_modes_that_were_right_stay_so():
    for mode, value in (("1", 255), ("L", 90), ("P", 90)):
        image = Image.new("L", (4, 1), value).convert(mode)
        assert values(image) == [value] * 4


def test_orientation_of_other_depths(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for row in (FLOATS[None], np.array([[0, 300, 40_000, 65_535]], dtype=np.uint16)):
        Image.fromarray(row).save(tmp_path / "upright.tif")
        Image.fromarray(row).save(tmp_path / "turned.tif", exif=exif)
        assert values(tmp_path / "turned.tif") == values(tmp_path / "upright.tif")[::-1]


def test_constant_images_and_few_levels_are_found(tmp_path):
    rng = np.random.default_rng(0)
    cases = {
        "noise": (rng.integers(0, 256, (9, 9, 3)), None),
        "gray ramp": (np.arange(81).reshape(9, 9), None),
        "eight": (np.arange(81).reshape(9, 9) % 8 * 9, None),
        "brightest 32": (np.arange(81).reshape(9, 9) % 33, None),
        "brightest 31": (np.arange(81).reshape(9, 9) % 32, "dark: no value above 31 of 255"),
        "one channel has 32": (np.stack([np.arange(81).reshape(9, 9) % (31 + i) for i in range(3)], -1), None),
        "seven": (np.arange(81).reshape(9, 9) % 7, "few levels: 7 of 256"),
        "black": (np.zeros((9, 9)), "constant: all pixels are the same"),
        "one color": (np.broadcast_to([5, 9, 200], (9, 9, 3)), "constant: all pixels are the same"),
        "one channel": (rng.integers(0, 256, (9, 9, 3)) * [1, 0, 0], None),
    }
    for name, (pixels, found) in cases.items():
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
        assert look_at(tmp_path / f"{name}.png").odd == ([found] if found else []), name
    # 12-bit values in a file of 16 bits, which says nothing of it
    Image.fromarray(rng.integers(0, 1700, (9, 9)).astype(np.uint16)).save(tmp_path / "dark.png")
    assert "few levels: 7 of 256" in look_at(tmp_path / "dark.png").odd


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("bits", "brightest"), [(12, 15), (13, 31)])
def test_sensor_values_in_16_bits_are_found(tmp_path, suffix, bits, brightest):
    """A file whose 16 bits hold fewer, which it does not say, becomes almost black: 12 bits become 16 levels."""
    image = tmp_path / f"sensor.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 2**bits, (64, 64)).astype(np.uint16)).save(image)
    assert np.asarray(read_image(image)).max() == brightest
    assert any_says(look_at(image).odd, "dark: ", f"{brightest} of 255")
    Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (64, 64)).astype(np.uint16)).save(image)
    assert not any("dark" in reason for reason in look_at(image).odd)
