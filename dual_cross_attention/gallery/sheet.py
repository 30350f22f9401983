"""Contact sheet: a row per query image with the nearest images of the gallery, their identities and distances."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dual_cross_attention.atomic_io import atomic_write
from dual_cross_attention.data.images import UnreadableImage, read_image
from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.index import Match
from dual_cross_attention.text import escape

TILE = 160
"""Width and height of an image, in pixels."""
FONT_SIZE, LINE, MARGIN = 15, 20, 8
BACKGROUND, TEXT, MUTED = "white", "black", (95, 95, 95)
MOST_ROWS, MOST_TILES = 100, 20
UNKNOWN = "(unknown)"


def write_sheet(output: Path, queries: Sequence[tuple[str, Sequence[Match]]]) -> None:
    """Writes a PNG file with at most `MOST_ROWS` queries and `MOST_TILES` matches each.

    Args:
        output: the file.
        queries: path of each query image and what was found for it, nearest first.

    Raises:
        InputError: it cannot be written.
    """
    queries = [(path, matches[:MOST_TILES]) for path, matches in queries[:MOST_ROWS]]
    columns = 1 + max((len(matches) for _, matches in queries), default=0)
    height = TILE + 2 * LINE + MARGIN
    sheet = Image.new("RGB", (columns * (TILE + MARGIN) + MARGIN, len(queries) * height + MARGIN), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for row, (path, matches) in enumerate(queries):
        tiles = [(path, "query", Path(path).name)]
        tiles += [(match.path, match.identity or UNKNOWN, f"{match.distance:.3f}") for match in matches]
        for column, (image, *captions) in enumerate(tiles):
            left, top = MARGIN + column * (TILE + MARGIN), MARGIN + row * height
            _paste(sheet, draw, font, image, left, top)
            for line, (caption, color) in enumerate(zip(captions, (TEXT, MUTED), strict=True)):
                text = _shortened(escape(caption), font)
                draw.text((left, top + TILE + line * LINE), text, fill=color, font=font)
    try:
        with atomic_write(output) as temporary:
            sheet.save(temporary, format="PNG")
    except OSError as error:
        raise InputError(f"--sheet: cannot write '{escape(output)}': {error.strerror or error}") from error


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, font, path: str, left: int, top: int) -> None:
    """The image in the middle of its tile, or why it cannot be shown."""
    try:
        image = ImageOps.contain(read_image(Path(path), (TILE, TILE)), (TILE, TILE))
    except UnreadableImage:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=MUTED)
        draw.text((left + MARGIN, top + TILE // 2 - LINE), "cannot be read", fill=MUTED, font=font)
        return
    sheet.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))


def _shortened(text: str, font) -> str:
    """Text that is not wider than a tile: cut in the middle, where names differ least."""
    cut = text
    while font.getlength(cut) > TILE and len(text) > 2:
        middle = len(text) // 2
        text = text[: middle - (len(text) % 2 == 0)] + text[middle + (len(text) % 2) :]
        cut = f"{text[: len(text) // 2]}…{text[len(text) // 2 :]}"
    return cut
