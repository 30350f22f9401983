"""Vectors of an index in Milvus: a server, or Milvus Lite, which keeps them in a file.

The database of the index remains the truth: what Milvus holds behind the last committed id is of an interrupted write.
Each generation of vectors is a collection of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.settings import IndexSettings
from dual_cross_attention.gallery.store import State
from dual_cross_attention.gallery.vectors import BUILD_EFFORT, LINKS, NO_MATCH, SEARCH_EFFORT
from dual_cross_attention.text import escape

AT_ONCE = 1000
"""Vectors of one request."""
MOST_RESULTS = 16_384
"""Of one query: the limit of Milvus."""


class MilvusVectors:
    """Vectors in Milvus collections with the fields id and vector. The connection is opened at the first use.

    Args:
        settings: of the index, with uri and collection.

    Raises:
        InputError: pymilvus is not installed, or milvus-lite, which a file needs.
    """

    def __init__(self, settings: IndexSettings):
        self.settings, self._client = settings, None
        self.uri = settings.uri or ""
        self.is_file = "://" not in self.uri
        _import_pymilvus(self.is_file)

    def append(self, state: State, vectors: np.ndarray) -> None:
        with self._connected() as client:
            name = self._name(state)
            if client.has_collection(name):
                client.delete(name, filter=f"id >= {state.rows}")
            else:
                self._create(client, name)
            for start in range(0, len(vectors), AT_ONCE):
                some = enumerate(vectors[start : start + AT_ONCE], state.rows + start)
                client.insert(name, [{"id": row_id, "vector": vector} for row_id, vector in some])
            client.flush(name)

    def search(self, state: State, queries: np.ndarray, k: int, left_out: np.ndarray) -> np.ndarray:
        found = np.full((len(queries), k), NO_MATCH, np.int64)
        hidden = {*left_out.tolist()}
        # Milvus does not know which ids are left out: more are asked for, until k others are among them.
        limit, waiting = min(MOST_RESULTS, k + min(len(hidden), k)), np.arange(len(queries))
        with self._connected() as client:
            while len(waiting):
                again = []
                for start in range(0, len(waiting), AT_ONCE):
                    numbers = waiting[start : start + AT_ONCE]
                    for number, hits in zip(numbers, self._hits(client, state, queries[numbers], limit), strict=True):
                        kept = [each for each in hits if each not in hidden][:k]
                        found[number, : len(kept)] = kept
                        if len(kept) < k and len(hits) == limit < MOST_RESULTS:
                            again.append(number)
                waiting, limit = np.array(again, np.int64), min(MOST_RESULTS, 4 * limit)
        return found

    def read(self, state: State, ids: np.ndarray) -> np.ndarray:
        by_id: dict[int, Any] = {}
        with self._connected() as client:
            for start in range(0, len(ids), AT_ONCE):
                some = ids[start : start + AT_ONCE].tolist()
                rows = client.get(self._name(state), ids=some, output_fields=["vector"])
                by_id |= {row["id"]: row["vector"] for row in rows}
        if missing := sum(each not in by_id for each in ids.tolist()):
            raise InputError(f"{self._where}: {missing:,} vectors of the index are missing: build it again")
        return np.array([by_id[each] for each in ids.tolist()], "<f4").reshape(len(ids), self.settings.dimension)

    def check(self, state: State) -> None:
        if not state.rows:
            return
        with self._connected() as client:
            name, there = self._name(state), 0
            if client.has_collection(name):
                counted = client.query(name, filter=f"id < {state.rows}", output_fields=["count(*)"])
                there = counted[0]["count(*)"]
        if there != state.rows:
            raise InputError(
                f"{self._where}: expected {state.rows:,} vectors of the index, got {there:,}: build it again"
            )

    def size(self, state: State) -> None:
        return None

    def extend_graph(self, state: State, force: bool = False) -> int:
        return state.graph_rows  # Milvus extends its own

    def compact(self, state: State, kept: np.ndarray) -> State:
        next_state = State(state.generation + 1, 0, 0)
        with self._connected() as client:
            client.drop_collection(self._name(next_state))  # of an interrupted rebuild; no error if there is none
        for start in range(0, len(kept), AT_ONCE):
            some = kept[start : start + AT_ONCE]
            self.append(next_state._replace(rows=start), self.read(state, some))
        return next_state._replace(rows=len(kept))

    def clean(self, state: State) -> None:
        with self._connected() as client:
            current = self._name(state)
            for name in client.list_collections():
                if name.startswith(f"{self.settings.collection}_") and name != current:
                    client.drop_collection(name)

    def _hits(self, client: Any, state: State, queries: np.ndarray, limit: int) -> list[list[int]]:
        options = {"params": {"ef": min(32_768, max(SEARCH_EFFORT, limit))}} if self.settings.kind == "hnsw" else {}
        found = client.search(
            self._name(state),
            data=list(queries),
            limit=limit,
            filter=f"id < {state.rows}",
            search_params=options,
            output_fields=["id"],
        )
        return [[hit["id"] for hit in hits] for hits in found]

    def _create(self, client: Any, name: str) -> None:
        types = _import_pymilvus(self.is_file).DataType
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", types.INT64, is_primary=True)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=self.settings.dimension)
        index = client.prepare_index_params()
        options = {"index_type": "FLAT"}
        if self.settings.kind == "hnsw":
            options = {"index_type": "HNSW", "params": {"M": LINKS, "efConstruction": BUILD_EFFORT}}
        index.add_index("vector", metric_type="L2" if self.settings.metric == "L2" else "IP", **options)
        # Strong: a search sees all vectors that were inserted before it.
        client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def _name(self, state: State) -> str:
        return f"{self.settings.collection}_{state.generation}"

    @property
    def _where(self) -> str:
        return f"Milvus at '{escape(self.uri)}'"

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """The client; its errors are an InputError."""
        pymilvus = _import_pymilvus(self.is_file)
        try:
            if self._client is None:
                self._client = pymilvus.MilvusClient(self.uri)
            yield self._client
        except (pymilvus.MilvusException, OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self._where} cannot be used: {escape(' '.join(f'{error}'.split())):.300}") from error


def _import_pymilvus(is_file: bool) -> Any:
    """pymilvus; with `is_file`, checks that milvus-lite is installed, too."""
    try:
        import pymilvus

        if is_file:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--engine milvus needs pymilvus and milvus-lite ({error}): pip install 'dual-cross-attention[milvus]'"
        ) from error
    return pymilvus
