"""Files of predictions and features, read back by other libraries."""

import csv
import json
import sys

import numpy as np
import pytest

from dual_cross_attention import InputError
from dual_cross_attention.inference import feature_files, prediction_files, row_files
from dual_cross_attention.inference.prediction import Embedding, Prediction

NUMBERS = [0.1, 1 / 3, 2.5e-9, float(np.float32(0.7))]
PREDICTIONS = [
    Prediction('a, "b"\n.jpg', "ü|é", NUMBERS[1], None, [("ü|é", NUMBERS[1]), ("x,y", NUMBERS[2])]),
    Prediction("C:\\x\\b.jpg", "cat", NUMBERS[3], True, [("cat", NUMBERS[3]), ("dog", NUMBERS[0])]),
    Prediction("c.jpg", "cat", NUMBERS[3], False, [("cat", NUMBERS[3]), ("dog", NUMBERS[0])]),
    Prediction("broken.jpg", error="the file is empty"),
]


def written(path, predictions=PREDICTIONS):
    # Rows are kept as JSON in between, so their values must survive that.
    rows = [json.loads(json.dumps(prediction_files.as_row(prediction))) for prediction in predictions]
    prediction_files.write_predictions(path, lambda: iter(rows), path.suffix, 2)
    return path


def expected(prediction):
    return {**vars(prediction), "top": [list(pair) for pair in prediction.top]}


def test_json(tmp_path):
    content = json.loads(written(tmp_path / "a.json").read_text())
    assert content["format_version"] and content["images"] == [expected(p) for p in PREDICTIONS]
    assert json.loads(written(tmp_path / "b.json", []).read_text())["images"] == []


def test_jsonl(tmp_path):
    lines = [json.loads(line) for line in written(tmp_path / "a.jsonl").read_text().splitlines()]
    assert all(line.pop("format_version") for line in lines)
    assert lines == [expected(p) for p in PREDICTIONS]


def test_csv(tmp_path):
    with written(tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, restval=""))
    for row, prediction in zip(rows, PREDICTIONS, strict=True):
        assert row["path"] == prediction.path and row["error"] == (prediction.error or "")
        assert row["known"] == {None: "", True: "true", False: "false"}[prediction.known]
        if not prediction.error:
            top = [(row["label"], float(row["probability"])), (row["label_2"], float(row["probability_2"]))]
            assert top == prediction.top


@pytest.mark.skipif(sys.platform == "win32", reason="names of any bytes")
def test_csv_keeps_the_bytes_of_a_path(tmp_path):
    path = written(tmp_path / "a.csv", [Prediction("\udcff.jpg", "a", 1.0, None, [("a", 1.0)])])
    assert path.read_bytes().splitlines()[1].startswith(b"\xff.jpg,")


def test_parquet(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(row_files, "AT_ONCE", 3)  # row groups
    rows = parquet.read_table(written(tmp_path / "a.parquet")).to_pylist()
    for row in rows:
        row["top"] = [[each["label"], each["probability"]] for each in row["top"]]
    assert rows == [expected(p) for p in PREDICTIONS]
    (row,) = parquet.read_table(written(tmp_path / "b.parquet", [Prediction("\udcff.jpg", error="x")])).to_pylist()
    assert row["path"] == "\\udcff.jpg"
    assert parquet.read_table(written(tmp_path / "c.parquet", [])).num_rows == 0


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="parquet"):
        row_files.check_suffix(tmp_path / "a.parquet", row_files.SUFFIXES)
    row_files.check_suffix(tmp_path / "a.CSV", row_files.SUFFIXES)
    with pytest.raises(InputError, match="jsonl"):
        row_files.check_suffix(tmp_path / "a.xlsx", row_files.SUFFIXES)


FEATURES = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
EMBEDDINGS = [
    Embedding("a.jpg", FEATURES[0]),
    Embedding("broken.jpg", error="the file is empty"),
    Embedding("ü\udcff.jpg", FEATURES[1]),
    Embedding("C:\\x\\b.jpg", FEATURES[2]),
]


def write_features(path, embeddings=EMBEDDINGS):
    rows = [json.loads(json.dumps(feature_files.as_row(embedding))) for embedding in embeddings]
    feature_files.write_features(path, lambda: iter(rows), path.suffix, 5, "ab12")
    return path


def test_npz(tmp_path):
    with np.load(write_features(tmp_path / "a.npz")) as file:  # without pickle
        assert file["features"].dtype == np.float32 and np.array_equal(file["features"], FEATURES)
        assert file["paths"].tolist() == ["a.jpg", "ü\udcff.jpg", "C:\\x\\b.jpg"]
        assert (file["unreadable"].tolist(), file["reasons"].tolist()) == (["broken.jpg"], ["the file is empty"])
        assert (str(file["fingerprint"]), int(file["format_version"]) > 0) == ("ab12", True)
    with np.load(write_features(tmp_path / "b.npz", EMBEDDINGS[1:2])) as file:
        assert file["features"].shape == (0, 5) and file["paths"].shape == (0,)


def test_features_in_parquet(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(feature_files, "AT_ONCE", 3)
    table = parquet.read_table(write_features(tmp_path / "a.parquet"))
    assert table.schema.metadata[b"fingerprint"] == b"ab12"
    # A fixed size is written or read by no pyarrow before 26 where an image has no feature.
    assert not hasattr(table.schema.field("feature").type, "list_size")
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == ["a.jpg", "broken.jpg", "ü\\udcff.jpg", "C:\\x\\b.jpg"]
    assert [row["error"] for row in rows] == [None, "the file is empty", None, None]
    assert rows[1]["feature"] is None
    found = np.array([row["feature"] for row in rows if row["feature"]], dtype=np.float32)
    assert np.array_equal(found, FEATURES)
