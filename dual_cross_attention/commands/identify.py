"""`dcal identify`: which individual of an index images show, or that it is a new one."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dual_cross_attention.commands.gallery_options import (
    GalleryOptions,
    check_outputs,
    embedder,
    open_gallery,
    print_columns,
    write_output,
)
from dual_cross_attention.commands.inference_options import HARDWARE, ImagesOptions, find_inputs
from dual_cross_attention.commands.output import show_log
from dual_cross_attention.configs.arguments import read_options
from dual_cross_attention.progress import make_console, track
from dual_cross_attention.text import escape

if TYPE_CHECKING:
    from dual_cross_attention.gallery.identify import Decision


@dataclass(kw_only=True)
class IdentifyOptions(ImagesOptions, GalleryOptions):
    """Says for each image which identity of an index it shows, or "new", by the threshold of dcal calibrate for a
    gallery of this size. Images in a subfolder of a given folder are a track of one individual and are answered
    together. The result is a table, or a file with one row per image: path, track, identity (a name, or new), known,
    distance (of the nearest identity; of a track, the mean), probability (that both are the same, for even odds
    beforehand), nearest (identity), match (its nearest image), group (of a new image), error. The exit status is 1 if
    an image could not be read."""

    EXAMPLE: ClassVar = "dcal identify birds.index photos/ --output who.csv"
    GROUPS: ClassVar = {
        "identification": "tracks cluster enroll model",
        "output": "output",
        "hardware and speed": HARDWARE,
    }

    tracks: bool = True
    """Images in the same subfolder of a given folder show one individual. false: each image is answered alone."""
    cluster: bool = False
    """Group the new images and tracks into individuals, by average linkage up to the distance at which P(same) is one
    half."""
    enroll: bool = False
    """Add the new images to the index, under the names new-0001 and so on: one per image or track, or per group with
    --cluster."""
    output: str | None = None
    """File to write: .csv, .json, .jsonl or .parquet; - writes JSON Lines to standard output. null: a table."""


def run(arguments: list[str]) -> int:
    options = read_options(IdentifyOptions, "identify", arguments)
    console = make_console(stderr=True)
    show_log(console)
    check_outputs(options.output)
    from dual_cross_attention.gallery.enroll import enroll, new_names
    from dual_cross_attention.gallery.identify import decide_by, group_new, identify_all
    from dual_cross_attention.gallery.models import computed_by
    from dual_cross_attention.gallery.rows import IDENTITY_COLUMNS, identity_row

    images = find_inputs(options.images, console)
    index, model = open_gallery(options)
    decision = decide_by(index, model.calibration)
    console.print(_describe(decision), soft_wrap=True)
    embedding = embedder(model, index.settings.branch, options)(iter(images.paths))
    embeddings = track(embedding, "identify", images.total, console)
    folders = [word for word in options.images if os.path.isdir(word)] if options.tracks else []
    keep_new = options.cluster or options.enroll
    seen, tracks, answers = identify_all(index, model.calibration, decision, embeddings, folders, keep_new)
    named = sum(each.name is not None for each in tracks)
    if named:
        console.print(
            f"{named:,} subfolders are tracks, whose images are answered together (--tracks false: each alone)",
            soft_wrap=True,
        )
    new = [number for number, answer in enumerate(answers) if not answer.is_known]
    groups = list(range(len(new)))
    if options.cluster:
        limit = model.calibration.even_distance(index.settings.branch)
        groups = group_new(index, [tracks[number] for number in new], limit)
    names: list[str] = []
    if options.enroll:
        names = enroll(index, [tracks[number] for number in new], groups, computed_by(model, index.settings))
    elif options.cluster:
        by_group = new_names(index, len({*groups}))
        names = [by_group[group] for group in groups]
    name_of = dict(zip(new, names, strict=True)) if names else {}
    rows = [
        identity_row(each.path, None, each.error)
        if each.track is None
        else identity_row(each.path, answers[each.track], None, tracks[each.track].name, name_of.get(each.track))
        for each in seen
    ]
    if options.output:
        write_output(options.output, rows, IDENTITY_COLUMNS)
    else:
        _print_table(rows)
    console.print(_summary(rows, [*dict.fromkeys(names)], options.enroll), soft_wrap=True)
    return 1 if any(each.error for each in seen) else 0


def _describe(decision: "Decision") -> str:
    if not decision.gallery_size:
        return "the index has no identity: all images are new"
    return (
        f"threshold {decision.threshold:.4f} for a gallery of {decision.gallery_size:,} identities; expected "
        f"false-positive rate: {100 * decision.fpir:g} % of the images of other individuals get an identity"
    )


def _print_table(rows: list[dict[str, Any]]) -> None:
    has_groups = any(row["group"] for row in rows)
    lines = []
    for row in rows:
        if row["error"]:
            lines.append([escape(row["path"]), f"cannot be read: {row['error']}"])
            continue
        line = [escape(row["path"]), escape(row["identity"])]
        line += [escape(row["group"] or "")] if has_groups else []
        if row["distance"] is None:
            lines.append([*line, "", "", ""])
        else:
            line += [f"{100 * row['probability']:.1f} %", f"{row['distance']:.4f}", escape(row["nearest"])]
            lines.append(line)
    group = ["group"] if has_groups else []
    print_columns(["image", "identity", *group, "P(same)", "distance", "nearest"], lines)


def _summary(rows: list[dict[str, Any]], names: list[str], is_enrolled: bool) -> str:
    known, unreadable = (sum(bool(row[name]) for row in rows) for name in ("known", "error"))
    new = len(rows) - known - unreadable
    text = f"{len(rows):,} images: {known:,} known, {new:,} new"
    text += f", {unreadable:,} unreadable" if unreadable else ""
    if names:
        each = f"{names[0]} … {names[-1]}" if len(names) > 1 else names[0]
        text += f"; {'enrolled' if is_enrolled else 'grouped'} as {len(names):,} individuals, {each}"
    return text
