"""SQLite database of an index: all that is not a vector, and which vectors are part of the gallery.

The database is the truth: a vector belongs to the index from the commit on that inserts its row. Vectors behind the
last committed row, which a killed process has written, are ignored and overwritten.

A row of `images` that is not live has a vector and is not in the gallery: it was removed, or an interrupted command
computed it. Adding a file of the same content reuses its vector.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.settings import IndexSettings
from dual_cross_attention.text import escape

WAIT = 60.0
"""Seconds to wait for the commit of another process."""
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    id INTEGER PRIMARY KEY,         -- position of the vector
    digest BLOB NOT NULL UNIQUE,    -- hash of the file's content
    is_live INTEGER NOT NULL,
    identity BLOB,                  -- NULL: unknown
    path BLOB
);
CREATE INDEX by_identity ON images (identity) WHERE is_live;
CREATE INDEX by_path ON images (path) WHERE is_live;
CREATE INDEX not_live ON images (id) WHERE NOT is_live;
"""
AT_ONCE = 500
"""Values of one IN (...)."""


class Row(NamedTuple):
    """An image of the index."""

    id: int
    digest: bytes
    is_live: bool
    identity: str | None
    path: str | None


class State(NamedTuple):
    """What the database says of the vectors.

    Args:
        generation: of the file of vectors; a rebuild begins the next one.
        rows: number of committed vectors, live or not.
        graph_rows: the first so many are in the saved HNSW graph.
    """

    generation: int
    rows: int
    graph_rows: int


class Store:
    """The database of an index at `path`. All methods raise InputError if it cannot be read or written."""

    def __init__(self, path: Path):
        self.path = path
        self._connection: sqlite3.Connection | None = None

    @staticmethod
    def create(path: Path, settings: IndexSettings) -> None:
        """Writes a new, empty database; an existing file is an error of SQLite."""
        with closing(sqlite3.connect(path)) as connection:
            values = [("settings", settings.to_json()), ("generation", "0"), ("graph_rows", "0")]
            connection.executescript(SCHEMA)
            with connection:
                connection.executemany("INSERT INTO meta VALUES (?, ?)", values)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self, writes: bool = False) -> Iterator[None]:
        """A block that sees one state of the database; with `writes`, all its changes are committed, or none is."""
        with self._readable_errors():
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            yield
            with self._readable_errors():
                connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def settings(self) -> IndexSettings:
        return IndexSettings.from_json(self._meta("settings"), f"'{escape(self.path)}'")

    def state(self) -> State:
        rows = self._all("SELECT max(id) FROM images")[0][0]
        return State(self._number("generation"), 0 if rows is None else rows + 1, self._number("graph_rows"))

    def set_state(self, generation: int, graph_rows: int) -> None:
        values = [(str(generation), "generation"), (str(graph_rows), "graph_rows")]
        self._many("UPDATE meta SET value = ? WHERE name = ?", values)

    def stage(self, first: int, digests: Sequence[bytes]) -> None:
        """Inserts rows that are not live, for vectors from position `first` on."""
        self._many("INSERT INTO images (id, digest, is_live) VALUES (?, ?, 0)", list(enumerate(digests, first)))

    def add_computed_by(self, model: str) -> None:
        """Records the path of a model, beside that of the settings, that has computed vectors."""
        if model not in (known := self.computed_by()):
            self._all("INSERT OR REPLACE INTO meta VALUES ('computed_by', ?)", (json.dumps([*known, model]),))

    def computed_by(self) -> list[str]:
        """The recorded paths, in the order of their first vectors."""
        found = self._all("SELECT value FROM meta WHERE name = 'computed_by'")
        try:
            models = json.loads(found[0][0]) if found else []
        except (ValueError, TypeError, RecursionError):
            models = None
        if not (isinstance(models, list) and all(isinstance(each, str) for each in models)):
            raise InputError(f"'{escape(self.path)}' is damaged: computed_by is no list; build the index again")
        return models

    def set_live(self, row_id: int, identity: str | None, path: str) -> None:
        self._all(
            "UPDATE images SET is_live = 1, identity = ?, path = ? WHERE id = ?", (_blob(identity), _blob(path), row_id)
        )

    def set_not_live(self, ids: Iterable[int]) -> None:
        self._many("UPDATE images SET is_live = 0, identity = NULL WHERE id = ?", [(each,) for each in ids])

    def by_digest(self, digests: Sequence[bytes]) -> dict[bytes, Row]:
        return {row.digest: row for row in self._rows("digest", digests)}

    def by_id(self, ids: Sequence[int]) -> dict[int, Row]:
        return {row.id: row for row in self._rows("id", ids)}

    def by_path(self, path: str) -> list[Row]:
        return [*self._select("is_live AND path = ?", (_blob(path),))]

    def below(self, folder: str) -> list[Row]:
        """Live images in a folder or in folders below it; `folder` is absolute."""
        start = os.path.join(folder, "")
        stop = start[:-1] + chr(ord(start[-1]) + 1)
        return [*self._select("is_live AND path >= ? AND path < ?", (_blob(start), _blob(stop)))]

    def of_identity(self, identity: str) -> list[Row]:
        return [*self._select("is_live AND identity = ?", (_blob(identity),))]

    def live(self) -> Iterator[Row]:
        """Live images by id."""
        return self._select("is_live")

    def left_out(self, rows: int, named_only: bool) -> np.ndarray:
        """Ids below `rows`, int64, that a search must not find.

        These are the ids that are not live, and with `named_only` those of unknown identity.
        """
        # Each part has an index of its own: the time does not grow with the gallery.
        statement = "SELECT id FROM images WHERE NOT is_live"
        if named_only:
            statement += " UNION ALL SELECT id FROM images WHERE is_live AND identity IS NULL"
        found = self._all(f"SELECT id FROM ({statement}) WHERE id < ? ORDER BY id", (rows,))
        return np.array(found, dtype=np.int64).reshape(-1)

    def identities(self) -> list[tuple[str, int]]:
        """Identities with their numbers of images, by name."""
        found = self._all("SELECT identity, count(*) FROM images WHERE is_live AND identity NOTNULL GROUP BY identity")
        return sorted((_text(identity) or "", number) for identity, number in found)

    def count(self, condition: str = "1") -> int:
        return self._all(f"SELECT count(*) FROM images WHERE {condition}")[0][0]

    def number_of_identities(self) -> int:
        return self._all("SELECT count(DISTINCT identity) FROM images WHERE is_live")[0][0]

    def keep_only_live(self, ids: Sequence[int]) -> None:
        """Deletes rows that are not live and numbers the others, whose ids are given in ascending order, from 0 on."""
        self._all("DELETE FROM images WHERE NOT is_live")
        self._many("UPDATE images SET id = ? WHERE id = ?", [(new, old) for new, old in enumerate(ids) if new != old])

    def _rows(self, column: str, values: Sequence) -> Iterator[Row]:
        for start in range(0, len(values), AT_ONCE):
            some = values[start : start + AT_ONCE]
            yield from self._select(f"{column} IN ({','.join('?' * len(some))})", some)

    def _select(self, condition: str, values: Sequence = ()) -> Iterator[Row]:
        with self._readable_errors():
            found = self._connect().execute(
                f"SELECT id, digest, is_live, identity, path FROM images WHERE {condition} ORDER BY id", values
            )
            for row_id, digest, is_live, identity, path in found:
                yield Row(row_id, digest, bool(is_live), _text(identity), _text(path))

    def _all(self, statement: str, values: Sequence = ()) -> list[tuple]:
        with self._readable_errors():
            return self._connect().execute(statement, values).fetchall()

    def _many(self, statement: str, values: list) -> None:
        with self._readable_errors():
            self._connect().executemany(statement, values)

    def _meta(self, name: str) -> str:
        found = self._all("SELECT value FROM meta WHERE name = ?", (name,))
        if not found or not isinstance(found[0][0], str):
            raise InputError(f"'{escape(self.path)}' is damaged: it has no {name}; build the index again")
        return found[0][0]

    def _number(self, name: str) -> int:
        value = self._meta(name)
        if not value.isdecimal() or len(value) > 15:
            raise InputError(f"'{escape(self.path)}' is damaged: {name} is no number; build the index again")
        return int(value)

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            # mode=rw: a missing file is an error, and not created. Transactions are begun by this class alone.
            address = f"{self.path.absolute().as_uri()}?mode=rw"
            self._connection = sqlite3.connect(address, WAIT, isolation_level=None, uri=True)
            self._connection.execute("PRAGMA trusted_schema = OFF")
        return self._connection

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            hint = (
                ": another process holds it" if "locked" in f"{error}" else "; an index that is damaged is built again"
            )
            raise InputError(f"the index's database '{escape(self.path)}' cannot be used ({error}){hint}") from error


def _blob(text: str | None) -> bytes | None:
    """Text as bytes: names of files may hold bytes that are not UTF-8, which SQLite's text cannot."""
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _text(blob: bytes | None) -> str | None:
    return None if blob is None else bytes(blob).decode("utf-8", "surrogateescape")
