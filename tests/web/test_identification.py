"""What the page says with an index: the answer of `dcal identify`, other thresholds, enrolling."""

import json
from pathlib import Path

import pytest

from dual_cross_attention.gallery import GalleryIndex
from dual_cross_attention.gallery.identify import Decision
from tests.web.conftest import reid_calibration

pytest.importorskip("gradio", reason="the page needs the extra [web]")

from dual_cross_attention.errors import InputError
from dual_cross_attention.web.identification import (
    enroll_upload,
    false_positive_rate,
    identify_images,
    identify_upload,
)
from dual_cross_attention.web.several_panel import identities_table
from dual_cross_attention.web.uploads import Upload


def test_the_answer_is_that_of_identify(gallery, dcal):
    model, index, upload = gallery
    found = identify_upload(model, index, upload)
    said = json.loads(dcal("identify", index, upload.path, "--output", "-", "--device=cpu").out)
    answer = found.answer
    assert (answer.identity, answer.is_known, answer.distance) == (said["nearest"], said["known"], said["distance"])
    assert found.at(answer.distance).is_known and not found.at(answer.distance * 0.99).is_known
    assert [match.distance for match in found.matches] == sorted(match.distance for match in found.matches)


def test_rate_at_another_threshold():
    fitted, decision = reid_calibration(0.5, 0.4), Decision(3, 0.5, 0.05)
    assert false_positive_rate(fitted, decision, 0.5, None) == 0.05
    # At the threshold of 30 identities, 30 searches find one at 5 %, so 3 do at 1 - 0.95 ** (3 / 30).
    assert false_positive_rate(fitted, decision, 0.4, None) == pytest.approx(1 - 0.95**0.1)


def test_an_image_is_enrolled_as_a_copy(gallery):
    model, index, upload = gallery
    assert "Enrolled as dan" in enroll_upload(index, identify_upload(model, index, upload), "dan")
    added = [row for row in GalleryIndex.open(index).images() if row.identity == "dan"]
    assert len(added) == 1 and added[0].path.startswith(f"{index}/enrolled/") and ".." not in added[0].path
    found = identify_upload(model, index, upload)
    assert found.answer.identity == "dan" and found.answer.distance == pytest.approx(0, abs=1e-3)
    with pytest.raises(InputError, match="identity"):
        enroll_upload(index, found, "  ")


@pytest.mark.parametrize("command", ["identify", "search"])
def test_several_images_are_answered_as_by_the_commands(gallery, dcal, tmp_path, command):
    """A model without a calibration has no decision: the rows are those of search."""
    model, index, upload = gallery
    if command == "search":
        model.calibration = None
    known, broken = tmp_path / "known" / "ann" / "a.png", tmp_path / "broken.png"
    broken.write_text("no image")
    paths = [upload.path, broken, known]
    found = identify_images(model, index, [Upload(f"{path}", Path(path).name) for path in paths])
    said = dcal(command, index, *paths, "--output", "-", "--device=cpu").out.splitlines()
    expected = [json.loads(line) for line in said]
    for row in expected:
        row["path"] = Path(row["path"]).name
        row.pop("format_version", None)
    assert found.rows == expected
    assert (found.error is None) == (command == "identify")
    table = identities_table(found)
    assert table.count("<tr>") == 1 + 3 and "3 images, 1 unreadable" in table
    assert ("not calibrated" in table) == (command == "search")
