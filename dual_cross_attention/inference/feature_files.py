"""Files of image features: NumPy's .npz and Parquet, written in constant memory except for the paths."""

import base64
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dual_cross_attention.configs.versions import FORMAT_VERSION
from dual_cross_attention.inference.prediction import Embedding
from dual_cross_attention.inference.row_files import AT_ONCE, as_utf8, import_pyarrow

Row = dict[str, Any]
SUFFIXES = (".npz", ".parquet")


def as_row(embedding: Embedding) -> Row:
    """An embedding as JSON values; the feature's little-endian float32 bytes are in base64."""
    feature = embedding.feature
    encoded = None if feature is None else base64.b64encode(feature.astype("<f4").tobytes()).decode("ascii")
    return {"path": embedding.path, "feature": encoded, "error": embedding.error}


def write_features(path: Path, rows: Callable[[], Iterator[Row]], suffix: str, width: int, fingerprint: str) -> None:
    """Writes rows of `as_row` in the format of a suffix.

    - .npz: "features" (N, D) float32 and "paths" (N,) of the images that could be read, "unreadable" and "reasons" of
      the others, "fingerprint" and "format_version". It is read without pickle.
    - .parquet: a row an image with "path", "feature" (D numbers, or null) and "error"; fingerprint and format_version
      are in the metadata of the schema.

    Args:
        path: of the file.
        rows: gives the rows, from the first one at each call.
        suffix: one of `SUFFIXES`, in lower case.
        width: D.
        fingerprint: of the model, see `LoadedModel.fingerprint`.

    Raises:
        OSError: the file cannot be written.
    """
    write = _write_npz if suffix == ".npz" else _write_parquet
    write(path, rows, width, fingerprint)


def _write_npz(path: Path, rows: Callable[[], Iterator[Row]], width: int, fingerprint: str) -> None:
    paths, unreadable, reasons = [], [], []
    for row in rows():
        if row["error"] is None:
            paths.append(row["path"])
        else:
            unreadable.append(row["path"])
            reasons.append(row["error"])
    small = {
        "paths": np.array(paths, dtype=np.str_),
        "unreadable": np.array(unreadable, dtype=np.str_),
        "reasons": np.array(reasons, dtype=np.str_),
        "fingerprint": np.array(fingerprint),
        "format_version": np.array(FORMAT_VERSION),
    }
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), width)}
            np.lib.format.write_array_header_1_0(file, header)
            for row in rows():
                if row["error"] is None:
                    file.write(base64.b64decode(row["feature"]))
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_parquet(path: Path, rows: Callable[[], Iterator[Row]], width: int, fingerprint: str) -> None:
    pyarrow = import_pyarrow()
    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            # Of no fixed size: pyarrow before 26 cannot write, or cannot read, fixed sizes with a null between others.
            ("feature", pyarrow.list_(pyarrow.float32())),
            ("error", pyarrow.string()),
        ],
        metadata={"format_version": f"{FORMAT_VERSION}", "fingerprint": fingerprint},
    )
    read = rows()
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(read, AT_ONCE)):
            features = [
                None if row["feature"] is None else np.frombuffer(base64.b64decode(row["feature"]), "<f4")
                for row in group
            ]
            columns = [
                pyarrow.array([as_utf8(row["path"]) for row in group], pyarrow.string()),
                pyarrow.array(features, schema.field("feature").type),
                pyarrow.array([row["error"] for row in group], pyarrow.string()),
            ]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
