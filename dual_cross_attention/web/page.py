"""The page: components of Gradio, and what they call."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio when it is imported

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse

from dual_cross_attention.inference import prediction_files
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.web import markup
from dual_cross_attention.web.answers import answer_image, predict_images
from dual_cross_attention.web.gallery_panel import ONE_AT_A_TIME, add_identification, check_index
from dual_cross_attention.web.uploads import MAX_BYTES, MAX_IMAGES, as_upload, as_uploads

TOP_K = 5


class ModelPage(gr.Blocks):
    """Gradio's page without its feature to fetch images from addresses that a client names."""

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        def refuse(file: dict[str, Any]) -> dict[str, Any]:
            if is_http_url_like(file.get("path") or ""):
                raise gr.Error("expected an uploaded file, got an address")
            return file

        traverse(inputs, refuse, is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


def build_page(
    model: LoadedModel,
    index: str | Path | None = None,
    examples: Sequence[str] = (),
    top_k: int = TOP_K,
    may_enroll: bool = True,
) -> ModelPage:
    """The page of a model.

    Args:
        index: folder of an index of its features; None: the page classifies and explains only.
        examples: image files to click on.
        top_k: number of classes.
        may_enroll: whether users of the page may add images to the index.

    Raises:
        InputError: the index is damaged, or of another model.
    """
    if index is not None:
        check_index(model, index)
    with ModelPage(title=f"DCAL: {model.short_name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_head(model))
        with gr.Tabs():
            with gr.Tab("One image"):
                _add_one(model, index, examples, top_k, may_enroll)
            if model.task != "reid":
                with gr.Tab("Several images"):
                    _add_several(model, top_k)
    return page


def _head(model: LoadedModel) -> str:
    kind = f"{len(model.labels):,} classes" if model.task != "reid" else "re-identification"
    return markup.section(
        f"<h1>{markup.name(model.short_name)}</h1>",
        markup.note(
            f"{kind}. Drop an image, paste one, or take one with the camera. Images stay on the machine that runs the "
            f"page; files of up to {MAX_BYTES // 10**6} MB."
        ),
    )


def _add_one(
    model: LoadedModel, index: str | Path | None, examples: Sequence[str], top_k: int, may_enroll: bool
) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            image = gr.Image(
                label="Image", sources=["upload", "clipboard", "webcam"], height=320, elem_id="image", buttons=[]
            )
            if examples:
                gr.Examples([[each] for each in examples], [image], label="Examples", cache_examples=False)
        with gr.Column(min_width=280):
            answer = gr.HTML(elem_id="answer")
    if index is not None:
        add_identification(model, index, image, may_enroll)
    maps = gr.HTML(elem_id="maps")
    with gr.Accordion("The answer as JSON", open=False, visible=model.task != "reid"):
        row = gr.JSON(show_label=False)

    def classify(payload):
        upload = as_upload(payload)
        if upload is None:
            return "", "", None
        found = answer_image(model, upload, top_k)
        answered = markup.answer_section(found, model.calibration is not None)
        return answered, markup.maps_section(found.explanation), found.row

    image.change(
        classify,
        [image],
        [answer, maps, row],
        api_name="classify",
        preprocess=False,
        show_progress_on=[answer],
        **ONE_AT_A_TIME,
    )


def _add_several(model: LoadedModel, top_k: int) -> None:
    files = gr.File(file_count="multiple", label=f"Images, at most {MAX_IMAGES}", elem_id="files", height=180)
    table = gr.HTML(elem_id="table")
    download = gr.DownloadButton("Download the table (CSV)", visible=False, elem_id="download")

    def classify_several(payload, progress=gr.Progress()):  # noqa: B008 (Gradio finds it by its default)
        uploads = as_uploads(payload)
        if not uploads:
            return "", gr.update(visible=False)
        found = predict_images(model, uploads, top_k, lambda done: progress((done, len(uploads)), unit="images"))
        path = Path(mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))) / "predictions.csv"
        rows = [prediction_files.as_row(each) for each in found]
        prediction_files.write_predictions(path, lambda: iter(rows), ".csv", min(top_k, len(model.labels)))
        return _predictions_table(found, model.calibration is not None), gr.update(value=f"{path}", visible=True)

    files.change(
        classify_several,
        [files],
        [table, download],
        api_name="classify_several",
        preprocess=False,
        show_progress_on=[table],
        **ONE_AT_A_TIME,
    )


def _predictions_table(predictions, is_calibrated: bool) -> str:
    titles = ["image", "class", "probability", *(["known"] if is_calibrated else [])]
    rows = []
    for each in predictions:
        if each.error:
            rows.append([each.path, f"cannot be read: {each.error}", *[""] * (len(titles) - 2)])
        else:
            known = ["yes" if each.known else "unknown"] if is_calibrated else []
            rows.append([each.path, each.label, markup.percent(each.probability), *known])
    unreadable = sum(bool(each.error) for each in predictions)
    said = f", {unreadable:,} unreadable" if unreadable else ""
    return markup.table_section(titles, rows, f"{len(predictions):,} images{said}")
