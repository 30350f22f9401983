"""Images to compare an exported file with PyTorch on."""

from rich.console import Console

from dual_cross_attention.data.images import ImageSource, UnreadableImage, read_image
from dual_cross_attention.errors import InputError
from dual_cross_attention.export.gate import BATCHES
from dual_cross_attention.inference.evaluation import read_test_images
from dual_cross_attention.inference.model_files import SavedModel


def sample_images(
    saved: SavedModel, data_root: str | None = None, number: int = sum(BATCHES)
) -> tuple[list[ImageSource], str]:
    """Test images of the run's data, evenly spaced; synthetic images where that data is not there.

    Args:
        saved: the model.
        data_root: where the data is; None: where the run found it.
        number: of images, at most.

    Returns:
        The images, and what they are, for a line.

    Raises:
        InputError: `data_root` is given and cannot be read.
    """
    try:
        setup = read_test_images(saved, {"data_root": data_root}, None, "refuse", Console(quiet=True))
        images = setup.data.test.images if saved.config.task == "fgvc" else setup.images
    except InputError:
        if data_root is not None:
            raise
        return synthetic_images(saved.config.task, number), "synthetic images"
    found: list[ImageSource] = []
    for position in range(number):
        image = images[position * len(images) // number]
        try:
            read_image(image)
        except UnreadableImage:
            continue
        found.append(image)
    if not found:
        return synthetic_images(saved.config.task, number), "synthetic images"
    return found, f"test images of {saved.config.dataset}"


def synthetic_images(task: str, number: int) -> list[ImageSource]:
    """Images of the built-in dataset of a task."""
    from dual_cross_attention.data.synthetic.birds import SPECIES, draw_bird
    from dual_cross_attention.data.synthetic.people import CAMERAS, TEST_PEOPLE, draw_person

    if task == "fgvc":
        return [draw_bird(place % len(SPECIES), f"export {place}") for place in range(number)]
    people, cameras = len(TEST_PEOPLE), len(CAMERAS)
    return [draw_person(TEST_PEOPLE[i % people], 1 + i % cameras, f"export {i}") for i in range(number)]
