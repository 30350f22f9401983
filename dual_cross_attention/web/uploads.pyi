"""Uploaded images: limits, and Gradio components that give files to the project's own reading code, undecoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gradio as gr
from gradio.data_classes import FileData

from dual_cross_attention.data.images import UnreadableImage, open_image
from dual_cross_attention.errors import InputError

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

class ImageUpload(gr.Image):
    """An image by upload, clipboard or camera. Its value is an `Upload`: the bytes as they came.

    `gr.Image` itself would decode them with PIL, in any format.
    """

    def preprocess(self, payload: FileData | None) -> Upload | None:
        return None if payload is None else _upload(payload)

    def get_block_name(self) -> str:
        return "image"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class FilesUpload(gr.File):
    """Several files. Its value is a list of `Upload`."""

    def preprocess(self, payload: Sequence[FileData] | FileData | None) -> list[Upload]:
        if payload is None:
            return []
        files = [payload] if isinstance(payload, FileData) else [*payload]
        if len(files) > MAX_IMAGES:
            raise gr.Error(f"expected at most {MAX_IMAGES} images at once, got {len(files):,}: take dcal predict")
        return [_upload(each) for each in files]

    def get_block_name(self) -> str:
        return "file"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

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

def _upload(payload: FileData) -> Upload:
    # A file of this session's upload folder: Gradio has refused other paths, and `ModelPage` addresses.
    return Upload(payload.path, Path(payload.orig_name or payload.path).name[:MAX_NAME])
