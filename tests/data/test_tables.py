"""CSV files of any columns, as `data.tables` reads them; tests/data/reid/test_tables.py has those of re-ID."""

import pytest

from dual_cross_attention.data.tables import TableRow, read_rows
from dual_cross_attention.errors import InputError
from tests.helpers import any_says, assert_says


@pytest.mark.parametrize(("separator", "named"), [(",", None), (";", "a semicolon"), ("\t", "a tab")])
def test_columns_by_name(tmp_path, separator, named):
    path, notes = tmp_path / "train.csv", []
    lines = [["Label", "more", " PATH "], ["wren", "x", '"a, b.jpg"'], [" ant", "", "c.jpg"]]
    path.write_text("\n".join(separator.join(line) for line in lines) + "\n")
    expected = [TableRow(2, {"path": "a, b.jpg", "label": "wren"}), TableRow(3, {"path": "c.jpg", "label": "ant"})]
    assert read_rows(path, ("path", "label"), "birds", notes) == expected
    assert any_says(notes, "birds: ", "train.csv", named) if named else not notes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,name\na,b\n", ["line 1", "path,label", "no label"]),
        ("path,label,label\na,b,c\n", ["line 1", "several label"]),
        ("path,label\na,b\nc,\n", ["line 3", "label"]),
        ("path,label\na,b,c\n", ["line 2", "2 fields", "got 3", "a comma"]),
        ("path,label\n", ["train.csv", "none"]),
        ('path,label\n"a\n', ["train.csv", "CSV"]),
    ],
)
def test_invalid_input_is_refused(tmp_path, text, words):
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_rows(path, ("path", "label"), "birds", [])
    assert_says(caught.value, "birds: ", path, *words)
