"""What the page computes for an uploaded image: the answers of `dcal predict`, `dcal explain` and `dcal identify`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dual_cross_attention.errors import InputError
from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.inference.prediction import Prediction
from dual_cross_attention.inference.prediction_files import as_row
from dual_cross_attention.web.uploads import Upload, check_size


@dataclass(frozen=True)
class ImageAnswer:
    """What a model says of one image.

    Args:
        prediction: of `LoadedModel.predict`; None for a re-identification model.
        explanation: of `LoadedModel.explain`, with an answer of each branch.
        error: why the image cannot be read; None if it was.
    """

    prediction: Prediction | None
    explanation: Explanation | None
    error: str | None = None

    @property
    def row(self) -> dict[str, Any]:
        """As `dcal predict --output -` writes it; of a re-identification model, the path and error alone."""
        if self.prediction is not None:
            return as_row(self.prediction)
        return {"path": self.explanation and self.explanation.path, "error": self.error}


def answer_image(model: LoadedModel, upload: Upload, top_k: int) -> ImageAnswer:
    """Classifies and explains an uploaded image. The path of the answers is the name of the upload."""
    try:
        check_size(upload)
    except InputError as error:
        return ImageAnswer(Prediction(upload.name, error=f"{error}"), None, f"{error}")
    prediction = None
    if model.task != "reid":
        prediction = replace(model.predict(upload.path, top_k), path=upload.name)
        if prediction.error:
            return ImageAnswer(prediction, None, prediction.error)
    explanation = replace(model.explain(upload.path, top_k), path=upload.name)
    return ImageAnswer(prediction, explanation, explanation.error)


def predict_images(
    model: LoadedModel, uploads: Sequence[Upload], top_k: int, progress: Callable[[int], None] = lambda done: None
) -> list[Prediction]:
    """Classifies uploaded images, in order. The path of each prediction is the name of the upload.

    Args:
        progress: is called with the number of images that are done.
    """
    refused: dict[int, str] = {}
    for number, upload in enumerate(uploads):
        try:
            check_size(upload)
        except InputError as error:
            refused[number] = f"{error}"
    found = iter(model.predict([each.path for number, each in enumerate(uploads) if number not in refused], top_k))
    predictions = []
    for number, upload in enumerate(uploads):
        if number in refused:
            predictions.append(Prediction(upload.name, error=refused[number]))
        else:
            predictions.append(replace(next(found), path=upload.name))
        progress(number + 1)
    return predictions
