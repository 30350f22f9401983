"""HTML of answers. Names of classes, identities and files are escaped; colors are those of Gradio's theme."""

from collections.abc import Iterable, Sequence
from html import escape as escape_html

from PIL import Image

from dual_cross_attention.explanation.explanation import Explanation
from dual_cross_attention.explanation.figures import ANSWERS
from dual_cross_attention.explanation.maps import MAP_TITLES
from dual_cross_attention.inference.prediction import Prediction
from dual_cross_attention.text import escape
from dual_cross_attention.web.answers import ImageAnswer
from dual_cross_attention.web.map_images import data_url, draw_map

CSS = """
.dcal {overflow-wrap: anywhere; color: var(--body-text-color); line-height: 1.45}
.dcal h2 {font-size: 1.35rem; margin: 0.2rem 0; font-weight: 600}
.dcal h3 {font-size: 1rem; margin: 0.9rem 0 0.3rem; font-weight: 600}
.dcal p {margin: 0.2rem 0}
.dcal .note {opacity: 0.8; font-size: 0.9rem}
.dcal .alert {border-left: 4px solid #d97706; padding: 0.3rem 0.7rem}
.dcal table {width: 100%; border-collapse: collapse; font-size: 0.95rem}
.dcal table, .dcal tr {border: none !important}
.dcal th, .dcal td {text-align: left; padding: 0.3rem 0.5rem 0.3rem 0; vertical-align: top; border: none !important;
  border-bottom: 1px solid var(--border-color-primary) !important}
.dcal td.number, .dcal th.number {text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
.dcal .bar {height: 0.35rem; background: var(--color-accent); border-radius: 2px; margin-top: 0.15rem}
.dcal .wide {overflow-x: auto}
.dcal .wide td, .dcal .wide th {overflow-wrap: normal; padding-right: 1rem}
.dcal .tiles {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(9rem, 45%), 1fr)); gap: 0.7rem}
.dcal .maps {grid-template-columns: repeat(auto-fit, minmax(min(9.5rem, 45%), 1fr))}
.dcal figure {margin: 0}
.dcal figure img {width: 100%; height: auto; display: block; border-radius: 4px}
.dcal .tiles:not(.maps) img {aspect-ratio: 1; object-fit: contain; background: var(--background-fill-secondary)}
.dcal figcaption {font-size: 0.85rem; margin-top: 0.2rem}
.dcal .decision {font-size: 1.35rem; font-weight: 600}
"""
"""Of the elements below; widths are relative, so that a page of 390 pixels needs no horizontal scrolling."""
MAP_WIDTH = 18
"""Of a map, at most, in rem."""


def name(text: str) -> str:
    """A name of a class, an identity or a file as HTML: control characters visible, no markup."""
    return escape_html(escape(text))


def section(*parts: str) -> str:
    return f'<div class="dcal">{"".join(parts)}</div>'


def alert(message: str) -> str:
    return section(f'<p class="alert" role="alert">{name(message)}</p>')


def note(message: str) -> str:
    return f'<p class="note">{name(message)}</p>'


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def answer_section(answer: ImageAnswer, is_calibrated: bool) -> str:
    """The answer of all branches together, and of each branch."""
    if answer.error:
        return alert(f"This image cannot be read: {answer.error}")
    if answer.prediction is None:
        return ""
    prediction = answer.prediction
    if prediction.known is False:
        head = f"<h2>unknown</h2><p>No class of the model; the most probable one is {name(prediction.label)}.</p>"
    else:
        head = f"<h2>{name(prediction.label)}</h2><p>probability {percent(prediction.probability)}</p>"
    kind = (
        "Probabilities are calibrated."
        if is_calibrated
        else ("Probabilities are not calibrated, and no image is answered as unknown: dcal calibrate fits both.")
    )
    return section(head, top_table(prediction), note(kind), branch_table(answer.branches))


def top_table(prediction: Prediction) -> str:
    rows = "".join(
        f'<tr><td>{name(label)}<div class="bar" style="width: {100 * value:.1f}%"></div></td>'
        f'<td class="number">{percent(value)}</td></tr>'
        for label, value in prediction.top
    )
    return (
        f'<table><thead><tr><th>class</th><th class="number">probability</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def branch_table(branches: dict[str, Prediction]) -> str:
    """The first class of each branch, where there is more than one."""
    if len(branches) < 2:
        return ""
    rows = "".join(
        f"<tr><td>{ANSWERS[branch]}</td><td>{name(each.label)}{' (unknown)' if each.known is False else ''}</td>"
        f'<td class="number">{percent(each.probability)}</td></tr>'
        for branch, each in branches.items()
    )
    head = '<th>branch</th><th>class</th><th class="number">probability</th>'
    return f"<h3>Each branch</h3><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def maps_section(explanation: Explanation | None) -> str:
    """The image as the model sees it, and each map over it."""
    if explanation is None or explanation.error:
        return ""
    seen = "the image, as the model sees it" + (f": {explanation.crop_words}" if explanation.crop_words else "")
    figures = [figure(Image.fromarray(explanation.image), seen)]
    names = ["rollout"] if explanation.glca is None else ["product", "rollout", "glca"]
    for each in names:
        values, title = explanation.map(each), MAP_TITLES[each]
        has_local = each == "rollout" and explanation.local is not None
        title += f"; outlined: local tokens, {percent(explanation.local.mean())} of the patches" if has_local else ""
        title += f"; {100 * values.min():.2f} (blue) to {100 * values.max():.2f} % (yellow) per patch"
        figures.append(figure(draw_map(explanation, values, has_local), title))
    width = f"max-width: {MAP_WIDTH * len(figures)}rem"
    tiles = f'<div class="tiles maps" style="{width}">{"".join(figures)}</div>'
    return section("<h3>What the model attends to</h3>", tiles)


def figure(image: Image.Image, caption: str) -> str:
    return (
        f'<figure><img src="{data_url(image)}" alt="{name(caption)}"><figcaption>{name(caption)}</figcaption></figure>'
    )


def table_section(titles: Sequence[str], rows: Iterable[Sequence[str]], summary: str) -> str:
    """A table of plain text, which scrolls in itself where it is wider than the page. Rows may end early."""
    head = "".join(f"<th>{name(title)}</th>" for title in titles)
    body = "".join(
        f"<tr>{''.join(f'<td>{name(cell)}</td>' for cell in row)}{'<td></td>' * (len(titles) - len(row))}</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return section(note(summary), f'<div class="wide" tabindex="0" role="region" aria-label="answers">{table}</div>')
