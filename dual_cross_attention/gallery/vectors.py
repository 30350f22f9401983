"""Vectors of an index in files, searched by FAISS: exactly, or by an HNSW graph and exactly what is not yet in it."""

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dual_cross_attention.atomic_io import atomic_write, flush
from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.settings import IndexSettings
from dual_cross_attention.gallery.store import State
from dual_cross_attention.text import escape

FLAT_TAIL = 10_000
"""Vectors that may stay outside of the HNSW graph, besides a `TAIL_SHARE` of those in it."""
TAIL_SHARE = 0.05
LINKS, BUILD_EFFORT, SEARCH_EFFORT = 32, 64, 64
"""M, efConstruction and efSearch of Malkov and Yashunin 2016 (HNSW)."""
NO_MATCH = -1


class VectorEngine(Protocol):
    """What stores and searches the vectors of an index. Vectors have ids from 0 on, in the order they are appended."""

    def append(self, state: State, vectors: np.ndarray) -> None:
        """Stores prepared vectors, (N, D), from id `state.rows` on, durably; replaces what is there behind it."""

    def search(self, state: State, queries: np.ndarray, k: int, left_out: np.ndarray) -> np.ndarray:
        """Ids of the k nearest of the first `state.rows` vectors, (Q, k) int64, without the ids `left_out`.

        The order in a row does not matter; `NO_MATCH` fills what is missing.
        """

    def read(self, state: State, ids: np.ndarray) -> np.ndarray:
        """Vectors, (N, D) float32, of ids."""

    def check(self, state: State) -> None:
        """Raises InputError if vectors are missing."""

    def size(self, state: State) -> int | None:
        """Bytes on disk; None if they are not known."""

    def extend_graph(self, state: State, force: bool = False) -> int:
        """Adds vectors to the graph of a `kind` that has one, if they are many; the new `graph_rows`."""

    def compact(self, state: State, kept: np.ndarray) -> State:
        """A next generation with the vectors of the ids `kept`, in their order; the earlier one stays."""

    def clean(self, state: State) -> None:
        """Deletes what is of another generation or of an interrupted write."""


class FaissVectors:
    """Vectors in one file of float32 rows, to which new ones are appended.

    Args:
        folder: of the index.
        settings: of the index.
    """

    def __init__(self, folder: Path, settings: IndexSettings):
        self.folder, self.settings = folder, settings
        self._graph: tuple[Path, Any] | None = None

    def append(self, state: State, vectors: np.ndarray) -> None:
        path, start = self._path(state), state.rows * self._row_bytes
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(start)  # what a killed process wrote and did not commit
            file.seek(start)
            file.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        if not state.rows:
            flush(self.folder)

    def search(self, state: State, queries: np.ndarray, k: int, left_out: np.ndarray) -> np.ndarray:
        vectors = self._rows(state)
        if not state.graph_rows:
            return self._search_flat(vectors, queries, k, left_out)
        graph, faiss = self._read_graph(state), _faiss()
        keep = _selector(state.graph_rows, left_out[left_out < state.graph_rows])
        options = faiss.SearchParametersHNSW(sel=keep and keep[0], efSearch=max(SEARCH_EFFORT, 2 * k))
        _, near = graph.search(queries, k, params=options)
        tail = left_out[left_out >= state.graph_rows] - state.graph_rows
        further = self._search_flat(vectors[state.graph_rows :], queries, k, tail)
        further[further >= 0] += state.graph_rows
        return self._nearest(vectors, queries, np.concatenate([near, further], axis=1), k)

    def read(self, state: State, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self._rows(state)[ids])

    def check(self, state: State) -> None:
        self._rows(state)

    def size(self, state: State) -> int:
        names = (self._path(state), self._graph_path(state))
        return sum(path.stat().st_size for path in names if path.is_file())

    def extend_graph(self, state: State, force: bool = False) -> int:
        waiting = state.rows - state.graph_rows
        if self.settings.kind != "hnsw" or not waiting:
            return state.graph_rows
        if waiting <= FLAT_TAIL + TAIL_SHARE * state.graph_rows and not force:
            return state.graph_rows
        faiss = _faiss()
        if state.graph_rows:
            graph = self._read_graph(state, for_writing=True)
        else:
            metric = faiss.METRIC_L2 if self.settings.metric == "L2" else faiss.METRIC_INNER_PRODUCT
            graph = faiss.IndexHNSWFlat(self.settings.dimension, LINKS, metric)
            graph.hnsw.efConstruction = BUILD_EFFORT
        vectors = self._rows(state)
        for start in range(state.graph_rows, state.rows, FLAT_TAIL):  # in pieces, so that Ctrl-C is noticed
            graph.add(np.ascontiguousarray(vectors[start : min(start + FLAT_TAIL, state.rows)]))
        with atomic_write(self._graph_path(state._replace(graph_rows=state.rows))) as temporary:
            faiss.write_index(graph, os.fspath(temporary))
        return state.rows

    def compact(self, state: State, kept: np.ndarray) -> State:
        next_state = State(state.generation + 1, len(kept), 0)
        vectors = self._rows(state)
        with atomic_write(self._path(next_state)) as temporary, temporary.open("wb") as file:
            for start in range(0, len(kept), FLAT_TAIL):
                file.write(vectors[kept[start : start + FLAT_TAIL]].tobytes())
        return next_state

    def clean(self, state: State) -> None:
        current = {self._path(state), self._graph_path(state)}
        for path in [*self.folder.glob("vectors-*.f32*"), *self.folder.glob("graph-*.hnsw*")]:
            if path not in current:
                path.unlink(missing_ok=True)

    def _search_flat(self, vectors: np.ndarray, queries: np.ndarray, k: int, left_out: np.ndarray) -> np.ndarray:
        """As `search`; reads the file through the page cache, without a copy in memory."""
        found = np.full((len(queries), k), NO_MATCH, np.int64)
        if not len(vectors) or not len(queries):
            return found
        faiss = _faiss()
        scores = np.empty((len(queries), k), np.float32)
        search = faiss.knn_L2sqr if self.settings.metric == "L2" else faiss.knn_inner_product
        pointers = [faiss.swig_ptr(each) for each in (queries, vectors, scores, found)]
        keep = _selector(len(vectors), left_out)
        sizes = (self.settings.dimension, len(queries), len(vectors), k)
        if self.settings.metric == "L2":
            search(*pointers[:2], *sizes, *pointers[2:], None, keep and keep[0])
        else:
            search(*pointers[:2], *sizes, *pointers[2:], keep and keep[0])
        return found

    def _nearest(self, vectors: np.ndarray, queries: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
        """The k nearest of the candidates of each query, (Q, C) ids → (Q, k)."""
        found = np.full((len(queries), k), NO_MATCH, np.int64)
        for row, (query, candidates) in enumerate(zip(queries, ids, strict=True)):
            candidates = candidates[candidates >= 0]
            order = self.settings.distances(query, vectors[candidates]).argsort(kind="stable")[:k]
            found[row, : len(order)] = candidates[order]
        return found

    def _rows(self, state: State) -> np.ndarray:
        """The committed vectors, (rows, D), mapped into memory."""
        path, shape = self._path(state), (state.rows, self.settings.dimension)
        if not state.rows:
            return np.empty(shape, "<f4")
        try:
            size = path.stat().st_size
            if size >= state.rows * self._row_bytes:
                return np.asarray(np.memmap(path, "<f4", "r", shape=shape))
        except OSError as error:
            raise InputError(f"vectors of the index cannot be read: '{escape(path)}': {error.strerror}") from error
        raise InputError(
            f"'{escape(path)}' is truncated: expected {state.rows * self._row_bytes:,} bytes, got {size:,}; build the "
            "index again"
        )

    def _read_graph(self, state: State, for_writing: bool = False) -> Any:
        path, faiss = self._graph_path(state), _faiss()
        if not for_writing and self._graph and self._graph[0] == path:
            return self._graph[1]
        try:
            graph = faiss.read_index(os.fspath(path), 0 if for_writing else faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            graph = None
            reason = " ".join(f"{error}".split())[:200]
        if graph is None or (graph.ntotal, graph.d) != (state.graph_rows, self.settings.dimension):
            reason = reason if graph is None else f"{graph.ntotal:,} vectors of {graph.d} dimensions"
            raise InputError(
                f"'{escape(path)}' is damaged: expected an HNSW graph of {state.graph_rows:,} vectors ({reason}): "
                "dcal index rebuild makes it again"
            )
        if not for_writing:
            self._graph = (path, graph)
        return graph

    @property
    def _row_bytes(self) -> int:
        return 4 * self.settings.dimension

    def _path(self, state: State) -> Path:
        return self.folder / f"vectors-{state.generation}.f32"

    def _graph_path(self, state: State) -> Path:
        return self.folder / f"graph-{state.generation}-{state.graph_rows}.hnsw"


def _selector(rows: int, left_out: np.ndarray) -> tuple[Any, np.ndarray] | None:
    """A FAISS selector of all ids below `rows` but some, with the bits that it points to; None for all."""
    if not len(left_out):
        return None
    kept = np.ones(rows, bool)
    kept[left_out] = False
    bits = np.packbits(kept, bitorder="little")
    return _faiss().IDSelectorBitmap(bits), bits


def _faiss() -> Any:
    """FAISS, imported when it is needed."""
    import faiss

    return faiss
