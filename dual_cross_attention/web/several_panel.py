"""The part of the page for several images: tables of classes and of identities, each with a file to download."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from dual_cross_attention.inference import prediction_files
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.inference.prediction import Prediction
from dual_cross_attention.inference.row_files import Row, write_rows
from dual_cross_attention.web import markup
from dual_cross_attention.web.answers import predict_images
from dual_cross_attention.web.gallery_panel import ONE_AT_A_TIME
from dual_cross_attention.web.identification import Identities, identify_images
from dual_cross_attention.web.uploads import MAX_IMAGES, Progress, Upload, as_uploads

Answered = Callable[[Sequence[Upload], Path, Progress], str]
"""Answers uploads, writes the file at a path, and returns the table as HTML."""


def add_several_images(model: LoadedModel, index: str | Path | None, top_k: int) -> None:
    """Adds the components to the page that is being built."""
    files = gr.File(file_count="multiple", label=f"Images, at most {MAX_IMAGES}", elem_id="files", height=180)

    def classify(uploads: Sequence[Upload], path: Path, progress: Progress) -> str:
        found = predict_images(model, uploads, top_k, progress)
        rows = [prediction_files.as_row(each) for each in found]
        prediction_files.write_predictions(path, lambda: iter(rows), ".csv", min(top_k, len(model.labels)))
        return predictions_table(found, model.calibration is not None)

    def identify(uploads: Sequence[Upload], path: Path, progress: Progress) -> str:
        found = identify_images(model, index, uploads, progress)
        with write_rows(path, found.columns) as write:
            for row in found.rows:
                write(row)
        return identities_table(found)

    if model.task != "reid":
        _add_table(files, classify, "table", "predictions", "classify_several")
    if index is not None:
        _add_table(files, identify, "identities", "identities", "identify_several")


def _add_table(files: gr.File, answer: Answered, element: str, name: str, api_name: str) -> None:
    table = gr.HTML(elem_id=element)
    download = gr.DownloadButton(f"Download the {name} (CSV)", visible=False, elem_id=f"download-{element}")

    def compute(payload, progress=gr.Progress()):  # noqa: B008 (Gradio finds it by its default)
        uploads = as_uploads(payload)
        if not uploads:
            return "", gr.update(visible=False)
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.csv"
            shown = answer(uploads, path, lambda done: progress((done, len(uploads)), unit="images"))
            kept = save_file_to_cache(path, download.GRADIO_CACHE)  # which Gradio deletes as it does uploads
        return shown, gr.update(value=kept, visible=True)

    files.change(
        compute,
        [files],
        [table, download],
        api_name=api_name,
        preprocess=False,
        show_progress_on=[table],
        **ONE_AT_A_TIME,
    )


def predictions_table(predictions: Sequence[Prediction], is_calibrated: bool) -> str:
    """The first class of each image."""
    rows = []
    for each in predictions:
        if each.error:
            rows.append([each.path, f"cannot be read: {each.error}"])
        else:
            known = ["yes" if each.known else "unknown"] if is_calibrated else []
            rows.append([each.path, each.label, markup.percent(each.probability), *known])
    titles = ["image", "class", "probability", *(["known"] if is_calibrated else [])]
    return markup.table_section(titles, rows, _summary([each.error for each in predictions]))


def identities_table(found: Identities) -> str:
    """The identity of each image, or its nearest gallery image where the model is not calibrated."""
    has_decision = found.error is None
    first = [row for row in found.rows if has_decision or row["rank"] in (None, 1)]
    cells = _identity_cells if has_decision else _match_cells
    rows = [
        [row["path"], f"cannot be read: {row['error']}"] if row["error"] else [row["path"], *cells(row)]
        for row in first
    ]
    summary = _summary([row["error"] for row in first])
    if has_decision:
        return markup.table_section(["image", "identity", "P(same)", "distance", "nearest"], rows, summary)
    table = markup.table_section(["image", "nearest identity", "distance", "found"], rows, summary)
    return markup.alert(found.error) + table


def _identity_cells(row: Row) -> list[str]:
    if row["distance"] is None:
        return [row["identity"]]
    return [row["identity"], markup.percent(row["probability"]), f"{row['distance']:.4f}", row["nearest"]]


def _match_cells(row: Row) -> list[str]:
    if row["rank"] is None:
        return ["nothing: the index is empty"]
    name = "(unknown)" if row["identity"] is None else row["identity"]
    return [name, f"{row['distance']:.4f}", row["match"]]


def _summary(errors: Sequence[str | None]) -> str:
    unreadable = sum(bool(error) for error in errors)
    return f"{len(errors):,} images" + (f", {unreadable:,} unreadable" if unreadable else "")
