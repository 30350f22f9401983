"""Long tables of a report are cut, with the number of rows that are left out; cameras have their names."""

from dual_cross_attention.report import classifier_report, run_report

ON_CPU = ["--device=cpu", "--num_workers=0"]


def test_long_tables_are_cut(dcal, hostile_run, tmp_path, read_page, monkeypatch):
    monkeypatch.setattr(classifier_report, "LOWEST", 1)
    monkeypatch.setattr(classifier_report, "MOST_CLASSES", 2)
    monkeypatch.setattr(run_report, "MOST_UNREADABLE", 0)
    assert dcal("report", hostile_run, f"--output={tmp_path / 'cut.html'}", *ON_CPU).status == 0
    text = read_page(tmp_path / "cut.html").text
    assert "3 classes with test images" in text
    assert "The lowest 2 of 3 classes" in text and "The other 1 classes" in text
    assert "1 test images could not be read" in text and "not the other 1." in text
    assert "<i>broken.png" not in text


def test_all_rows_of_short_tables(hostile_report, read_page):
    text = read_page(hostile_report).text
    assert "3 classes with test images" in text and "The lowest 3 of" not in text and "not the other" not in text


def test_cameras_have_their_names(reid_report, read_page):
    text = read_page(reid_report).text
    table = text[text.index("Cameras, the lowest mAP first") : text.index("Ranked lists", text.index("mAP by camera"))]
    assert "door" in table and "hall" in table
