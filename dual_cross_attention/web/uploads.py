"""Uploaded images: limits, and files as they came, for the project's own reading code."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gradio as gr
from gradio.data_classes import FileData, ListFiles

from dual_cross_attention.data.images import UnreadableImage, open_image
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.prediction import Embedding, Prediction

Answer = TypeVar("Answer", Prediction, Embedding)
Progress = Callable[[int], None]
"""Is called with the number of images that are done."""

MAX_BYTES = 50_000_000
"""Of an uploaded file."""
MAX_PIXELS = 100_000_000
"""Of an uploaded image: 0.3 GB in RGB. Of an animation or a TIFF of several pages, one frame is decoded."""
MAX_IMAGES = 200
"""Of one upload."""
MAX_NAME = 200
"""Characters of a file name that are kept."""


class Upload(NamedTuple):
    """An uploaded file: where it is stored, and the name that it had."""

    path: str
    name: str


def as_upload(payload: FileData | dict[str, Any] | None) -> Upload | None:
    """The file of an event with `preprocess=False`: the bytes as they came. `gr.Image` would decode them with PIL.

    Its path is in the upload folder: Gradio has refused other paths, and `ModelPage` addresses.
    """
    if payload is None:
        return None
    read = payload if isinstance(payload, dict) else payload.model_dump()
    if not read.get("path"):
        raise gr.Error("expected an uploaded file, got none")
    return Upload(read["path"], Path(read.get("orig_name") or read["path"]).name[:MAX_NAME])


def as_uploads(payload: ListFiles | list[Any] | None) -> list[Upload]:
    """The files of an event with `preprocess=False`."""
    if payload is None:
        return []
    files = payload.root if isinstance(payload, ListFiles) else [*payload]
    if len(files) > MAX_IMAGES:
        raise gr.Error(f"expected at most {MAX_IMAGES} images at once, got {len(files):,}: take dcal predict")
    return [upload for each in files if (upload := as_upload(each))]


def check_size(upload: Upload) -> None:
    """Raises InputError for an image that is larger than a page takes; other errors are for the reading code to say."""
    try:
        if Path(upload.path).stat().st_size > MAX_BYTES:
            raise InputError(
                f"expected a file of at most {MAX_BYTES // 10**6} MB: take the command line for larger ones"
            )
        with open_image(Path(upload.path)) as opened:
            width, height = opened.size
    except (OSError, UnreadableImage):
        return
    if width * height > MAX_PIXELS:
        raise InputError(
            f"expected at most {MAX_PIXELS:,} pixels, got {width:,} x {height:,}: take the command line for larger ones"
        )


def no_progress(done: int) -> None:
    """Shows nothing."""


def answer_each(
    uploads: Sequence[Upload],
    compute: Callable[[list[str]], Iterator[Answer]],
    kind: type[Answer],
    progress: Progress = no_progress,
) -> list[Answer]:
    """The answers for uploaded images, in order. The path of an answer is the name of the upload.

    Args:
        uploads: those that are too large get an answer with the `error`.
        compute: answers for the paths of the others, in order.
        kind: of the answers.
    """
    errors = [_size_error(upload) for upload in uploads]
    found = compute([upload.path for upload, error in zip(uploads, errors, strict=True) if error is None])
    answers = []
    for upload, error in zip(uploads, errors, strict=True):
        answers.append(replace(next(found), path=upload.name) if error is None else kind(upload.name, error=error))
        progress(len(answers))
    return answers


def _size_error(upload: Upload) -> str | None:
    try:
        check_size(upload)
    except InputError as error:
        return f"{error}"
    return None
