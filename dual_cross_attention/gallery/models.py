"""The model of an index, and settings of an index from a model."""

import logging
import os
import secrets
from typing import Literal

from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.settings import Distance, Engine, IndexSettings, Kind
from dual_cross_attention.inference.loaded_model import LoadedModel, load_model
from dual_cross_attention.text import escape

LOGGER = logging.getLogger(__name__)


def settings_of(
    model: LoadedModel,
    branch: Literal["sa", "glca"] | None = None,
    kind: Kind = "flat",
    engine: Engine = "faiss",
    uri: str | None = None,
    collection: str | None = None,
) -> IndexSettings:
    """Settings of an index of a model's features, compared by the distance that the model was trained with.

    Raises:
        InputError: the model does not have the branch.
    """
    if branch is not None and branch not in model.model.test_branches:
        raise InputError(
            f"--branch: expected {' or '.join(model.model.test_branches)}, which the model has, got {branch}"
        )
    distance: Distance = getattr(model.config, "distance", "euclidean")
    return IndexSettings(
        model=os.path.abspath(model.source),
        fingerprint=model.fingerprint(branch),
        dimension=model.feature_width(branch),
        branch=branch,
        distance=distance,
        normalized=getattr(model.config, "normalize_features", True),
        kind=kind,
        engine=engine,
        uri=uri,
        collection=collection,
        source=model.source_fingerprint(branch),
    )


def check_model(model: LoadedModel, settings: IndexSettings) -> str | None:
    """Checks that a model computes the features of an index.

    An exported float32 file and the model that it was exported from compute the same ones, but for rounding: the export
    compared them. Both sides are accepted; float16 and int8 files are models of their own.

    Returns:
        A line that says how the model belongs to the index, where it is not the one that the index was built with; else
        None.

    Raises:
        InputError: it is another model.
    """
    own, source = model.fingerprint(settings.branch), model.source_fingerprint(settings.branch)
    if own == settings.fingerprint:
        return None
    rounding = "features differ by rounding, at most 1e-4 of the largest value of each"
    if source is not None and source in (settings.fingerprint, settings.source):
        return f"'{escape(model.source)}' was exported from the model of the index: {rounding}"
    if own == settings.source:
        return f"the index was built with a file that was exported from '{escape(model.source)}': {rounding}"
    raise InputError(
        f"'{escape(model.source)}' is not the model of this index: weights, branch or preprocessing differ "
        f"(fingerprint {own[:8]}…, expected {settings.fingerprint[:8]}…): give the earlier model by --model, or build "
        "the index again"
    )


def computed_by(model: LoadedModel, settings: IndexSettings) -> str | None:
    """Path of a model that `check_model` accepts in place of the one that the index was built with; the index records
    it with the features that it adds. None: it is that one."""
    return None if model.fingerprint(settings.branch) == settings.fingerprint else os.path.abspath(model.source)


def place_in_milvus(engine: Engine, uri: str | None) -> tuple[str | None, str | None]:
    """The URI of Milvus, absolute where it is a file, and the name of a new collection; None and None with FAISS.

    Raises:
        InputError: Milvus without a URI, or FAISS with one.
    """
    if (engine == "milvus") != (uri is not None):
        raise InputError(
            "--uri: expected a file that ends in .db (Milvus Lite) or the address of a server, got nothing"
            if engine == "milvus"
            else "--uri is of --engine milvus: with --engine faiss, all files are in the folder of the index"
        )
    if uri is None:
        return None, None
    if "://" not in uri:
        if not uri.endswith(".db"):
            raise InputError(
                f"--uri: expected a file that ends in .db, or an address such as http://localhost:19530, got "
                f"'{escape(uri)}'"
            )
        uri = os.path.abspath(uri)
    return uri, f"dcal_{secrets.token_hex(8)}"


def load_model_of(
    settings: IndexSettings, model: str | None = None, device: str = "auto", precision: str | None = None
) -> LoadedModel:
    """The model of an index, from the path that it stores, or from another one.

    Args:
        settings: of the index.
        model: where the model is now; None: at the stored path.
        device, precision: as of `load_model`.

    Raises:
        InputError: no model is there, or another one, whose features the index does not hold.
    """
    if model is None and not os.path.exists(settings.model):
        raise InputError(
            f"the model of the index is not at '{escape(settings.model)}' any more: give its path by --model"
        )
    loaded = load_model(model or settings.model, device, precision)
    if line := check_model(loaded, settings):
        LOGGER.info(line)
    return loaded
