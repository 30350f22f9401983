"""An index on disk: images of a gallery with their identities, and the nearest of them to any feature.

A write covers the vectors and the database, and a process that is killed in the middle leaves the old or the new state:
vectors are stored first, behind those that the database knows, and one commit of the database makes them part of the
index. One process writes at a time; others wait.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.settings import IndexSettings
from dual_cross_attention.gallery.store import Row, Store
from dual_cross_attention.gallery.vectors import FaissVectors, VectorEngine
from dual_cross_attention.text import escape

DATABASE = "index.sqlite"
DEAD_SHARE = 0.2
"""Share of vectors that are not in the gallery from which `info` advises a rebuild."""
LOGGER = logging.getLogger(__name__)


class GalleryImage(NamedTuple):
    """An image to add: its absolute path, its identity (None: unknown), and the hash of its content."""

    path: str
    identity: str | None
    digest: bytes


class Match(NamedTuple):
    """An image of the gallery that a search has found.

    Args:
        distance: of the index, see `IndexSettings.distance`.
        identity: None if it is unknown.
        path: absolute.
        id: of its vector.
    """

    distance: float
    identity: str | None
    path: str
    id: int


@dataclass
class Added:
    """What `GalleryIndex.add` did with the images, counted.

    Args:
        added: new images.
        unchanged: images that are in the index with the same path and identity.
        renamed: images whose earlier path is no more; they have the new one.
        copies: files of the same content as another file, which stays in the index.
        reassigned: images that have another identity now.
        replaced: images whose file has another content now.
        conflicts: files of equal content and different identities: (path, identity, path and identity that stay).
    """

    added: int = 0
    unchanged: int = 0
    renamed: int = 0
    copies: int = 0
    reassigned: int = 0
    replaced: int = 0
    conflicts: list[tuple[str, str, str, str]] = field(default_factory=list)


class GalleryIndex:
    """An index on disk. Made by `create` or `open`.

    Attributes:
        folder: of the index.
        settings: see `IndexSettings`.
    """

    def __init__(self, folder: Path, settings: IndexSettings, store: Store, vectors: VectorEngine):
        self.folder, self.settings, self._store, self._vectors = folder, settings, store, vectors

    @classmethod
    def create(cls, folder: str | Path, settings: IndexSettings) -> "GalleryIndex":
        """A new, empty index in a folder that does not exist or is empty.

        Raises:
            InputError: something is there, or it cannot be written.
        """
        folder = Path(folder)
        engine = make_engine(folder, settings)
        made = folder.with_name(f"{folder.name}.tmp")
        try:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                what = "an index, to which dcal index add adds" if (folder / DATABASE).exists() else "something else"
                raise InputError(f"'{escape(folder)}' is {what}: give the name of a new folder to build an index")
            shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
            made.mkdir(parents=True)
            Store.create(made / DATABASE, settings)
            os.replace(made, folder)  # the index appears with its database, or not at all
        except OSError as error:
            raise InputError(f"cannot write the index '{escape(folder)}': {error.strerror or error}") from error
        return cls(folder, settings, Store(folder / DATABASE), engine)

    @classmethod
    def open(cls, folder: str | Path) -> "GalleryIndex":
        """An index that exists.

        Raises:
            InputError: there is none, or it is damaged or of a later version.
        """
        folder = Path(folder)
        if not (folder / DATABASE).is_file():
            raise InputError(f"no index at '{escape(folder)}': expected a folder that dcal index build has made")
        store = Store(folder / DATABASE)
        settings = store.settings()
        index = cls(folder, settings, store, make_engine(folder, settings))
        with store.transaction():
            index._vectors.check(store.state())
        return index

    def close(self) -> None:
        """Closes the files; the next call opens them again."""
        self._store.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A block in which no other process writes. Waits for one that does; what a killed one left is removed."""
        lock = FileLock(f"{self.folder / 'write.lock'}")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            LOGGER.info(f"another process writes to '{escape(self.folder)}': waiting for it")
            lock.acquire()
        except OSError as error:
            raise InputError(f"cannot write to '{escape(self.folder)}': {error.strerror or error}") from error
        try:
            with self._store.transaction():
                state = self._store.state()
            self._vectors.clean(state)
            yield
        except OSError as error:
            raise InputError(f"cannot write to '{escape(self.folder)}': {error.strerror or error}") from error
        finally:
            lock.release()

    def missing(self, digests: Sequence[bytes]) -> list[int]:
        """Positions of the digests that have no vector yet; of equal ones, the first."""
        with self._store.transaction():
            known = {*self._store.by_digest([*dict.fromkeys(digests)])}
        first = {digest: position for position, digest in reversed([*enumerate(digests)])}
        return sorted(position for digest, position in first.items() if digest not in known)

    def stage(self, digests: Sequence[bytes], features: np.ndarray, computed_by: str | None = None) -> None:
        """Stores features, (N, D), of images that are not part of the gallery yet. Within `writing`.

        An `add` that is interrupted resumes with them.

        Args:
            computed_by: path of the model, to be recorded where it is not that of the index, see `models.computed_by`.
        """
        if not len(digests):
            return
        vectors = self.settings.prepare(features)
        with self._store.transaction():
            state = self._store.state()
        self._vectors.append(state, vectors)
        with self._store.transaction(writes=True):
            self._store.stage(state.rows, digests)
            if computed_by is not None:
                self._store.add_computed_by(computed_by)

    def add(self, images: Sequence[GalleryImage]) -> Added:
        """Makes images part of the gallery, all or none. Within `writing`, after `stage`.

        Images whose content has no vector, since their files cannot be read, are left out.
        """
        done = Added()
        with self._store.transaction(writes=True):
            rows = self._store.by_digest([*{image.digest for image in images}])
            for image in images:
                if image.digest in rows:
                    self._add(image, rows, done)
        self._extend_graph()
        return done

    def remove(self, paths: Sequence[str] = (), identity: str | None = None) -> int:
        """Removes images by absolute path of a file or a folder, and those of an identity; the number removed.

        Raises:
            InputError: a path or the identity is not in the index; then nothing is removed.
        """
        with self.writing(), self._store.transaction(writes=True):
            ids: set[int] = set()
            if identity is not None:
                found = self._store.of_identity(identity)
                if not found:
                    raise InputError(f"the index has no identity '{escape(identity)}': dcal index info lists them")
                ids |= {row.id for row in found}
            for path in paths:
                found = self._store.by_path(path) or self._store.below(path)
                if not found:
                    raise InputError(f"the index has no image '{escape(path)}', and none below it")
                ids |= {row.id for row in found}
            self._store.set_not_live(sorted(ids))
        return len(ids)

    def search(self, features: np.ndarray, k: int = 10, named_only: bool = False) -> list[list[Match]]:
        """The nearest images of the gallery to each feature, at most k, nearest first; ties by id.

        Args:
            features: (Q, D), as the model computes them.
            named_only: leave out images of unknown identity.

        Raises:
            InputError: features that do not fit, k below 1, or an index that is damaged.
        """
        if k < 1:
            raise InputError(f"top_k: expected at least 1, got {k}")
        queries = self.settings.prepare(features)
        with self._store.transaction():
            state = self._store.state()
            left_out = self._store.left_out(state.rows, named_only)
            k = min(k, state.rows - len(left_out))
            if not k or not len(queries):
                return [[] for _ in queries]
            found = self._vectors.search(state, queries, k, left_out)
            ids = np.unique(found[found >= 0])
            vectors, rows = self._vectors.read(state, ids), self._store.by_id(ids.tolist())
            return [
                self._matches(query, near[near >= 0], ids, vectors, rows)
                for query, near in zip(queries, found, strict=True)
            ]

    def of_identities(self, identities: Sequence[str]) -> dict[str, np.ndarray]:
        """Vectors, (N, D), of all images of each identity."""
        with self._store.transaction():
            state = self._store.state()
            ids = {identity: [row.id for row in self._store.of_identity(identity)] for identity in identities}
            return {name: self._vectors.read(state, np.array(each, np.int64)) for name, each in ids.items() if each}

    def images(self) -> list[Row]:
        """All images of the gallery, in the order of their ids."""
        with self._store.transaction():
            return [*self._store.live()]

    def identities(self) -> list[tuple[str, int]]:
        """Identities with their numbers of images, by name."""
        with self._store.transaction():
            return self._store.identities()

    def number_of_identities(self) -> int:
        with self._store.transaction():
            return self._store.number_of_identities()

    def info(self) -> dict[str, Any]:
        """Settings, and "images", "identities", "unknown" (images), "unused" (vectors that are not in the gallery),
        "waiting" (vectors outside of the HNSW graph), "computed_by" (see `stage`), "bytes", and "rebuild": why a
        rebuild helps, or None."""
        store = self._store
        with store.transaction():
            state = store.state()
            unused = store.count("NOT is_live")
            found = {
                "images": state.rows - unused,
                "identities": store.number_of_identities(),
                "unknown": store.count("is_live AND identity IS NULL"),
                "unused": unused,
                "waiting": state.rows - state.graph_rows
                if (self.settings.kind, self.settings.engine) == ("hnsw", "faiss")
                else 0,
                "computed_by": store.computed_by(),
            }
            size = self._vectors.size(state)
        found["bytes"] = None if size is None else size + (self.folder / DATABASE).stat().st_size
        is_due = unused > DEAD_SHARE * state.rows and unused > 1
        found["rebuild"] = f"{unused:,} of {state.rows:,} vectors are not in the gallery" if is_due else None
        return {"settings": self.settings, **found}

    def rebuild(self) -> int:
        """Drops vectors that are not in the gallery, and makes the HNSW graph anew; the number dropped."""
        with self.writing():
            with self._store.transaction():
                state = self._store.state()
                kept = [row.id for row in self._store.live()]
            compacted = self._vectors.compact(state, np.array(kept, np.int64))
            with self._store.transaction(writes=True):
                self._store.keep_only_live(kept)
                self._store.set_state(compacted.generation, compacted.graph_rows)
            self._vectors.clean(compacted)
            self._extend_graph(force=True)
        return state.rows - len(kept)

    def _add(self, image: GalleryImage, rows: dict[bytes, Row], done: Added) -> None:
        """One image of `add`; `rows`, by content, stay those of the database."""
        store, identity, path, row = self._store, image.identity, image.path, rows[image.digest]
        if row.is_live:
            identity = row.identity if identity is None else identity
            if row.path != path and os.path.lexists(row.path):  # both files are there
                if identity != row.identity and row.identity is not None:
                    done.conflicts.append((path, identity, row.path, row.identity))
                done.copies += 1
                path, identity = row.path, identity if row.identity is None else row.identity
            if (identity, path) == (row.identity, row.path):
                done.unchanged += path == image.path
                return
            done.renamed += path != row.path
            done.reassigned += identity != row.identity
        else:
            done.added += 1
        for other in store.by_path(path):  # the file has had another content
            if other.id != row.id:
                store.set_not_live([other.id])
                rows[other.digest] = other._replace(is_live=False, identity=None)
                done.replaced += 1
        store.set_live(row.id, identity, path)
        rows[image.digest] = row._replace(is_live=True, identity=identity, path=path)

    def _matches(
        self, query: np.ndarray, near: np.ndarray, ids: np.ndarray, vectors: np.ndarray, rows: dict[int, Row]
    ) -> list[Match]:
        distances = self.settings.distances(query, vectors[np.searchsorted(ids, near)])
        order = np.lexsort((near, distances))
        found = [(float(distances[place]), rows[int(near[place])]) for place in order]
        return [Match(distance, row.identity, row.path or "", row.id) for distance, row in found]

    def _extend_graph(self, force: bool = False) -> None:
        with self._store.transaction():
            state = self._store.state()
        graph_rows = self._vectors.extend_graph(state, force)
        if graph_rows != state.graph_rows:
            with self._store.transaction(writes=True):
                self._store.set_state(state.generation, graph_rows)
            self._vectors.clean(state._replace(graph_rows=graph_rows))


def make_engine(folder: Path, settings: IndexSettings) -> VectorEngine:
    """The engine of the settings; Milvus is imported when it is needed."""
    if settings.engine == "milvus":
        from dual_cross_attention.gallery.milvus import MilvusVectors

        return MilvusVectors(settings)
    return FaissVectors(folder, settings)
