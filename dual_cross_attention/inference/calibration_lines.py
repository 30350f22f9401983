"""What a model card says of a calibration, in Markdown."""

import re
from functools import singledispatch

from dual_cross_attention.inference.calibration import TOGETHER, Calibration
from dual_cross_attention.inference.reid_calibration import ReIDCalibration
from dual_cross_attention.text import escape

TITLES = {TOGETHER: "as used", "sa": "SA alone", "glca": "GLCA alone"}
HEADING = "## Calibration"
NOT_HELD_OUT = "The file holds no numbers of images that the calibration was not fitted on."


@singledispatch
def calibration_lines(calibration: object) -> list[str]:
    """The section of a `Calibration`, a `ReIDCalibration` or None, without its heading."""
    return [
        "The model is not calibrated: `dcal calibrate` does that on labeled images that it was not trained on.",
    ]


@calibration_lines.register
def _(calibration: Calibration) -> list[str]:
    together, held_out = calibration.answers[TOGETHER], calibration.held_out
    split = f"split `{_text(calibration.split)}`, " if calibration.split else ""
    lines = [
        f"Fitted on {calibration.images:,} images of `{_text(calibration.dataset)}` ({split}fingerprint "
        f"`{_text(calibration.data)}`) on {_text(calibration.date)}. An image is called known if its {together.score} "
        f"is at least {together.threshold:.4g}, which keeps {100 * together.kept:.1f} % of them.",
        "",
    ]
    if held_out is None:
        return [*lines, NOT_HELD_OUT]
    lines += [
        f"Fitted on one half of them and measured on the other ({held_out['images']:,} images, of which "
        f"{100 * held_out['kept']:.1f} % are called known): expected calibration error (ECE, 15 bins) and negative "
        "log-likelihood (NLL):",
        "",
        "| | temperature | ECE before, % | ECE, % | NLL before | NLL |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in _titles(calibration):
        of = held_out[name]
        lines.append(
            f"| {title} | {calibration.answers[name].temperature:.3f} | {100 * of['ece_uncalibrated']:.2f} | "
            f"{100 * of['ece']:.2f} | {of['nll_uncalibrated']:.3f} | {of['nll']:.3f} |"
        )
    return lines


@calibration_lines.register
def _(calibration: ReIDCalibration) -> list[str]:
    held_out = calibration.held_out
    lines = [
        f"Fitted on {calibration.probes:,} query images and {calibration.gallery_images:,} gallery images of "
        f"{calibration.identities:,} identities of `{_text(calibration.dataset)}` (fingerprint "
        f"`{_text(calibration.data)}`) on {_text(calibration.date)}, for a false-positive identification rate (FPIR) "
        f"of {100 * calibration.fpir:g} %: of images of identities that are not enrolled, the share that is taken for "
        f"an enrolled one. Thresholds on the {calibration.distance} distance, by number of enrolled identities:",
        "",
        f"| | {' | '.join(f'{size:,}' for size in calibration.gallery_sizes)} |",
        f"|---|{'---|' * len(calibration.gallery_sizes)}",
        *(
            f"| {title} | {' | '.join(f'{value:.4f}' for value in calibration.answers[name].thresholds)} |"
            for name, title in _titles(calibration)
        ),
        "",
    ]
    if held_out is None:
        return [*lines, NOT_HELD_OUT]
    size = held_out.gallery_sizes[-1]
    lines += [
        f"Fitted on half of the identities and measured on the other half ({held_out.identities:,} identities, "
        f"{held_out.probes:,} query images), with {size:,} enrolled: the FPIR that is reached, and the false-negative "
        "identification rate (FNIR), of images of enrolled identities the share that is not identified:",
        "",
        "| | FPIR, % | FNIR, % |",
        "|---|---|---|",
    ]
    for name, title in _titles(calibration):
        rates = held_out.answers[name]
        fnir = "" if rates.fnir[-1] is None else f"{100 * rates.fnir[-1]:.1f}"
        lines.append(f"| {title} | {100 * rates.fpir[-1]:.2f} | {fnir} |")
    return lines


def with_calibration(card: str, calibration: Calibration | ReIDCalibration) -> str:
    """A model card with the section of another calibration; unchanged if it has no such section."""
    section = "\n".join([HEADING, "", *calibration_lines(calibration), "", ""])
    return re.sub(rf"^{HEADING}\n.*?(?=^## |\Z)", lambda _: section, card, count=1, flags=re.MULTILINE | re.DOTALL)


def _titles(calibration: Calibration | ReIDCalibration) -> list[tuple[str, str]]:
    """Answers with their titles; where there is one branch, it is the one that is used."""
    shown = [TOGETHER] if len(calibration.answers) == 2 else [name for name in TITLES if name in calibration.answers]
    return [(name, TITLES[name]) for name in shown]


def _text(value: object) -> str:
    return escape(value).replace("`", "'").replace("|", "\\|")
