"""The page: components of Gradio, and what they call."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio when it is imported

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse

from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.text import escape
from dual_cross_attention.web import markup
from dual_cross_attention.web.answers import answer_image
from dual_cross_attention.web.gallery_panel import ONE_AT_A_TIME, add_identification, check_index
from dual_cross_attention.web.several_panel import add_several_images
from dual_cross_attention.web.uploads import MAX_BYTES, as_upload

TOP_K = 5
NAME_EXAMPLES = """() => {
    const name = () => {
        for (const image of document.querySelectorAll('.gallery-item img[alt=""]'))
            image.alt = decodeURIComponent(image.src.split("/").pop());
    };
    new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
    name();
}"""
"""Gives the buttons of examples a name for screen readers, which Gradio does not."""


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
        InputError: the index is damaged, or of another model; an exported re-identification model without an index.
    """
    if index is not None:
        check_index(model, index)
    elif model.is_exported and model.task == "reid":
        raise InputError(
            f"'{escape(model.source)}' is an exported re-identification model, which the page can only search an index "
            "with: give --index INDEX, or load the model that it was exported from"
        )
    with ModelPage(title=f"DCAL: {model.short_name}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_head(model, index is not None))
        with gr.Tabs():
            with gr.Tab("One image"):
                _add_one(model, index, examples, top_k, may_enroll)
            if model.task != "reid" or index is not None:
                with gr.Tab("Several images"):
                    add_several_images(model, index, top_k)
        if examples:
            page.load(js=NAME_EXAMPLES, api_name=False)
    return page


def _head(model: LoadedModel, has_index: bool) -> str:
    if model.task != "reid":
        kind = f"{len(model.labels):,} classes."
    elif has_index:
        kind = "Re-identification."
    else:
        kind = (
            "Re-identification without an index: the page shows what the model attends to. dcal demo MODEL --index "
            "INDEX also says which identity an image shows."
        )
    if model.is_exported:
        kind += " This is an exported file, which has no attention maps; the model that it was exported from has."
    return markup.section(
        f"<h1>{markup.name(model.short_name)}</h1>",
        markup.note(
            f"{kind} Drop an image, paste one, or take one with the camera. Images stay on the machine that runs the "
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
        with gr.Column(min_width=280) as beside:
            answer = gr.HTML(elem_id="answer")
    if index is not None:
        add_identification(model, index, image, beside, may_enroll)
    maps = gr.HTML(elem_id="maps")
    with gr.Accordion("The answer as JSON", open=False, visible=model.task != "reid", elem_id="answer-as-json"):
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
