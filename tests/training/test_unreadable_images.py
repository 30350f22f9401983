"""Images that cannot be read: named once, replaced or left out, and counted."""

import json

import pytest

from dual_cross_attention.data.images import read_image
from tests.helpers import any_says, assert_says


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_do_not_end_a_run(dcal, small, make_images, tmp_path, workers):
    """They are named once, skipped, counted, and reported at the end."""
    root = make_images(tmp_path / "pictures")
    broken = root / "train" / "ant" / "03.png"
    broken.write_bytes(broken.read_bytes()[:40])
    odd = root / "val" / "cat" / "[red]00.png"
    odd.write_text("no image")
    run = tmp_path / "run"
    flags = [*small, "--data_root", root, "--epochs=3", "--num_workers", workers, "--output_dir", run]
    outcome = dcal("train", *flags)
    assert (outcome.status, outcome.err) == (0, "")
    warnings = [line for line in outcome.out.splitlines() if line.startswith("warning: ")]
    for path in (broken, odd):
        assert sum(str(path) in line for line in warnings) == 1
    assert len(warnings) == 2
    end = outcome.out[outcome.out.index("best epoch") :]
    assert "2 images could not be read" in end and str(broken) in end and str(odd) in end
    # The rest is scored: 18 images of 3 classes, and not the broken nineteenth.
    result = json.loads(dcal("eval", run, "--json", "-").out)
    assert (result["images"], result["unreadable"]) == (18, 1)
    assert result["top1"] * 18 / 100 == pytest.approx(round(result["top1"] * 18 / 100), abs=1e-4)
    # Said again when the finished run is looked at again.
    assert "2 images could not be read" in dcal("train", *flags).out


def test_a_broken_image_is_replaced_in_training_batches(dcal, small, make_images, tmp_path, monkeypatch):
    """The last image of the list: what replaces it is the first."""
    root = make_images(tmp_path / "pictures")
    broken = sorted((root / "train").glob("*/*.png"))[-1]
    broken.unlink()
    broken.symlink_to(root / "gone")
    read = []

    def watch(image, *size):
        read.append(image)
        return read_image(image, *size)

    monkeypatch.setattr("dual_cross_attention.data.dataset.read_image", watch)
    flags = ["--epochs=1", "--sample_images=0"]  # the sheet reads images once more
    outcome = dcal("train", *small, "--data_root", root, *flags, "--output_dir", tmp_path / "run")
    assert outcome.status == 0
    assert any_says(outcome.out.splitlines(), "warning: ", "unreadable", "replaced", f"{broken}: ")
    training = [path for path in read if "train" in path.parts]
    assert len(training) == 37  # 36 and the replacement
    assert training[training.index(broken) + 1] == root / "train" / "ant" / "00.png"


@pytest.mark.parametrize("workers", [0, 2])
def test_no_training_image_can_be_read(shell, small, make_images, tmp_path, workers):
    """The error is raised in the process that reads, and told in the one that was started."""
    root = make_images(tmp_path / "pictures")
    for path in root.glob("train/*/*"):
        path.write_bytes(b"")
    done = shell(*small, "--data_root", root, "--num_workers", workers, "--output_dir", tmp_path / "run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert_says(line, "dcal: error: ", "none of the 36 training images", root)


def test_no_test_image_can_be_read(dcal, small, make_images, tmp_path):
    root = make_images(tmp_path / "pictures")
    for path in root.glob("val/*/*"):
        path.write_bytes(b"")
    flags = ["--data_root", root, "--max_bad_images", 18, "--output_dir", tmp_path / "run"]
    outcome = dcal("train", *small, *flags)
    assert outcome.status == 2
    assert "none of the test images" in outcome.err
