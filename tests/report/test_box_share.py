"""Share of an attention map inside bounding boxes: against pixels, and from CUB's own file to the report."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dual_cross_attention.data.fgvc.cub import read_boxes
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.errors import InputError
from dual_cross_attention.report.box_share import box_in_view, share_inside

ON_CPU = ["--device=cpu", "--num_workers=0"]


@pytest.fixture
def cub(tmp_path) -> Path:
    """Two classes, four images each of 40 x 20 pixels, and boxes of the left half."""
    root = tmp_path / "CUB_200_2011"
    names = [f"00{label + 1}.Bird/{number}.png" for label in range(2) for number in range(4)]
    for place, name in enumerate(names):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (25 * place, 200 * (place // 4), 90)).save(root / "images" / name)
    files = {
        "classes.txt": [(1, "001.Bird"), (2, "002.Bird")],
        "images.txt": list(enumerate(names, 1)),
        "image_class_labels.txt": [(place + 1, 1 + place // 4) for place in range(8)],
        "train_test_split.txt": [(place + 1, int(place % 4 < 2)) for place in range(8)],
        "bounding_boxes.txt": [(place + 1, "0.0 0.0 20.0 20.0") for place in range(8)],
    }
    for name, rows in files.items():
        (root / name).write_text("".join(f"{key} {value}\n" for key, value in rows))
    return root


def test_share_against_pixels():
    """A map of 3 x 4 patches of 100 pixels each, and a box with edges on pixels that cuts patches."""
    values = np.random.default_rng(0).random((3, 4))
    pixels = np.kron(values, np.ones((100, 100)))
    left, top, width, height = 37, 120, 255, 144
    expected = pixels[top : top + height, left : left + width].sum() / pixels.sum()
    box = (left / 400, top / 300, width / 400, height / 300)
    assert share_inside(values, box) == pytest.approx(expected)
    assert share_inside(values, (0.0, 0.0, 1.0, 1.0)) == pytest.approx(1)
    assert share_inside(np.ones((3, 4)), box) == pytest.approx(width * height / 120_000)


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("box", [(10, 10, 60, 20), (0, 0, 200, 100), (150, 30, 80, 100)])
def test_box_in_view_against_a_drawn_box(box, keep_aspect):
    """The box is drawn white into the image, which is then preprocessed as for the model."""
    preprocessing = Preprocessing((60, 80), (80, 120), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), keep_aspect=keep_aspect)
    image = Image.new("RGB", (200, 100))
    image.paste((255, 255, 255), (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    white = preprocessing(image)[0].numpy() > 0.5
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    left, top, width, height = box_in_view(box, image.size, preprocessing)
    drawn = (columns[0] / 80, rows[0] / 60, len(columns) / 80, len(rows) / 60)
    assert (left, top, width, height) == pytest.approx(drawn, abs=1.01 / 60)


def test_a_box_outside_of_the_crop():
    preprocessing = Preprocessing((50, 50), (100, 100), (0.0,) * 3, (1.0,) * 3)
    assert box_in_view((0, 0, 20, 100), (100, 100), preprocessing) is None


def test_boxes_of_cub(cub):
    assert read_boxes(cub) == read_boxes(cub.parent) and len(read_boxes(cub)) == 8
    assert read_boxes(cub)[cub / "images/002.Bird/3.png"] == (0, 0, 20, 20)
    (cub / "bounding_boxes.txt").write_text("1 0.0 0.0 wide 20.0\n")
    with pytest.raises(InputError, match=r"bounding_boxes.txt, image 1.*wide"):
        read_boxes(cub)
    (cub / "bounding_boxes.txt").unlink()
    assert read_boxes(cub) == {}


def test_report_with_and_without_boxes(dcal, small, cub, tmp_path, read_page):
    flags = [word for word in small if not word.startswith(("--data_root", "--dataset", "--epochs"))]
    flags += ["--batch_size=4", "--dataset=cub", f"--data_root={cub}", "--epochs=1", f"--output_dir={tmp_path / 'run'}"]
    assert dcal("train", *flags).status == 0
    assert dcal("report", tmp_path / "run", *ON_CPU).status == 0
    text = read_page(tmp_path / "run/report.html").text
    # Images are resized to 39 pixels, of which the model sees 4 to 35; the box ends at 19.5.
    assert "4 test images, evenly spaced" in text
    assert f"equal values (reference) {100 * (19.5 - 4) / 32:.1f} ± 0.0" in text
    (cub / "bounding_boxes.txt").unlink()
    assert dcal("report", tmp_path / "run", *ON_CPU).status == 0
    assert "bounding box" not in read_page(tmp_path / "run/report.html").text
