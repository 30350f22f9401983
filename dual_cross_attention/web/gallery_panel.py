"""The part of the page that searches an index: decision, threshold, nearest images, and enrolling."""

import logging
from contextlib import closing
from html import escape as escape_html
from pathlib import Path

import gradio as gr
from PIL import Image

from dual_cross_attention.data.images import UnreadableImage, read_image
from dual_cross_attention.errors import InputError
from dual_cross_attention.gallery.index import GalleryIndex, Match
from dual_cross_attention.gallery.models import check_model
from dual_cross_attention.inference.loaded_model import LoadedModel
from dual_cross_attention.web import markup
from dual_cross_attention.web.identification import (
    LONGEST_IDENTITY,
    Identification,
    enroll_upload,
    false_positive_rate,
    identify_upload,
)
from dual_cross_attention.web.uploads import as_upload

ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model"}
"""Of all events that compute: a second user waits, and the page shows the place in the queue."""
TILE = 256
"""Longer side of a gallery image, in pixels."""
STEPS = 1000
"""Of the slider."""
LOGGER = logging.getLogger(__name__)


def check_index(model: LoadedModel, folder: str | Path) -> None:
    """Raises InputError if the index is damaged, or of features of another model."""
    with closing(GalleryIndex.open(folder)) as index:
        if line := check_model(model, index.settings):
            LOGGER.info(line)


def add_identification(
    model: LoadedModel, folder: str | Path, image: gr.Image, beside: gr.Column, may_enroll: bool
) -> None:
    """Adds the components to the page that is being built.

    Args:
        image: of the page, which is searched for.
        beside: gets the decision and its threshold; what follows stands below.
        may_enroll: show "enroll this".
    """
    with closing(GalleryIndex.open(folder)) as index:
        branch = index.settings.branch
    found_state = gr.State(None)
    with beside:
        decision = gr.HTML(elem_id="decision")
        slider = gr.Slider(0, 1, 0, label="Threshold (distance)", visible=False, elem_id="threshold")
    matches = gr.HTML(elem_id="matches")
    with gr.Row(visible=False, equal_height=True) as enrolling:
        identity = gr.Textbox(label="Identity", max_length=LONGEST_IDENTITY, elem_id="identity")
        button = gr.Button("Enroll this image", elem_id="enroll")
    done = gr.HTML(elem_id="enrolled")

    def decide(found: Identification | None, threshold: float) -> str:
        if found is None or found.answer is None:
            return ""
        if abs(threshold - found.decision.threshold) <= _largest(found) / STEPS / 2:
            threshold = found.decision.threshold  # the slider rounds it
        rate = 0.0
        if found.decision.gallery_size:
            rate = false_positive_rate(model.calibration, found.decision, threshold, branch)
        return decision_section(found, threshold, rate)

    def search(payload):
        upload = as_upload(payload)
        if upload is None:
            return None, "", gr.update(visible=False), "", gr.update(visible=False), ""
        found = identify_upload(model, folder, upload)
        if found.feature is None:
            return found, markup.alert(found.error), gr.update(visible=False), "", gr.update(visible=False), ""
        shown = gr.update(visible=False)
        said = markup.alert(found.error) if found.error else ""
        if found.answer is not None:
            threshold, has_threshold = found.decision.threshold, found.decision.gallery_size > 0
            said = decide(found, threshold)
            if has_threshold:
                most = _largest(found)
                shown = gr.update(value=_rounded(threshold), maximum=most, step=most / STEPS, visible=True)
        return found, said, shown, matches_section(found.matches), gr.update(visible=may_enroll), ""

    def enroll(found: Identification | None, name: str):
        if found is None or found.feature is None:
            raise gr.Error("expected an image to enroll, got none")
        try:
            return markup.section(f'<p role="status">{markup.name(enroll_upload(folder, found, name, model))}</p>')
        except InputError as error:
            return markup.alert(f"{error}")

    outputs = [found_state, decision, slider, matches, enrolling, done]
    image.change(
        search, [image], outputs, api_name="identify", preprocess=False, show_progress_on=[decision], **ONE_AT_A_TIME
    )
    slider.input(decide, [found_state, slider], [decision], api_name=False, show_progress="hidden")
    if may_enroll:
        button.click(enroll, [found_state, identity], [done], api_name=False, **ONE_AT_A_TIME)


def decision_section(found: Identification, threshold: float, rate: float) -> str:
    """The identity or "new", and how it was decided."""
    answer = found.at(threshold) if found.decision.gallery_size else found.answer
    who = markup.name(answer.identity) if answer.is_known else "new"
    lines = [f'<p class="decision">{who}</p>']
    if answer.distance is None:
        return markup.section(*lines, markup.note("The index has no identity: all images are new."))
    lines.append(
        f"<p>Nearest identity: {markup.name(answer.identity)}, distance {answer.distance:.4f}, "
        f"P(same) {markup.percent(answer.probability)}</p>"
    )
    is_calibrated = threshold == found.decision.threshold
    kind = "calibrated" if is_calibrated else "changed; the rate is estimated from the calibrated thresholds"
    lines.append(
        markup.note(
            f"Threshold {threshold:.4f} ({kind}) for a gallery of {found.decision.gallery_size:,} identities; expected "
            f"false-positive rate: {100 * rate:.3g} % of the images of other individuals get an identity."
        )
    )
    return markup.section(*lines)


def matches_section(matches: tuple[Match, ...]) -> str:
    """The nearest gallery images, decoded and made small here: no file of the gallery is served."""
    if not matches:
        return markup.section(markup.note("The index is empty."))
    figures = []
    for rank, match in enumerate(matches, 1):
        caption = f"{rank}. {'(unknown)' if match.identity is None else match.identity}, distance {match.distance:.4f}"
        try:
            tile = read_image(Path(match.path), (TILE, TILE))
            tile.thumbnail((TILE, TILE), Image.Resampling.BICUBIC)
            figures.append(markup.figure(tile, caption))
        except UnreadableImage as error:
            reason = escape_html(error.reason)
            figures.append(
                f"<figure><p>cannot be read: {reason}</p><figcaption>{markup.name(caption)}</figcaption></figure>"
            )
    return markup.section("<h3>Nearest images of the gallery</h3>", f'<div class="tiles">{"".join(figures)}</div>')


def _largest(found: Identification) -> float:
    """Of the slider: it reaches the distance of the image, and the threshold is not at its end."""
    return _rounded(1.5 * max(found.decision.threshold, found.answer.distance or 0.0, 1e-3))


def _rounded(distance: float) -> float:
    """To four digits, for display."""
    return float(f"{distance:.4g}")
