"""Calibration of a classifier: temperatures, and thresholds below which an image is of an unknown class. It is stored
in the header of a model file, which is untrusted.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from torch import Tensor
from torch.nn import functional as F

from dual_cross_attention.configs.versions import FORMAT_VERSION, check_version
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.json_values import count, number, reading, text
from dual_cross_attention.metrics.confidence import Score, confidence, log_mean_probability
from dual_cross_attention.text import short_repr

SCORES = get_args(Score)
MEASURES = ("ece_uncalibrated", "ece", "nll_uncalibrated", "nll")
"""Of each answer of `Calibration.held_out`."""
TOGETHER = "together"
"""Name of the joint answer: the mean of the probabilities of all predicting branches."""


@dataclass(frozen=True)
class CalibratedAnswer:
    """Calibration of one answer of a model.

    Args:
        temperature: T > 0. Of a branch, its probabilities are softmax(logits / T); of the branches together, they are
            proportional to (mean of the uncalibrated probabilities) ^ (1 / T). Neither changes the order of classes.
        score: of `metrics.confidence`, computed with the calibrated probabilities.
        threshold: an image is known where its score is at least this.
        kept: share of the calibration images that are known, 0..1.
    """

    temperature: float
    score: Score
    threshold: float
    kept: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of a classifier, and which images it was fitted on.

    Args:
        answers: by name: "together", and "sa" and "glca" for predictions of one branch.
        keep: the wanted share of known images.
        images: number of images that it was fitted on.
        dataset, split: those of the images; a split of None is the dataset's own choice.
        data: digest of the images, as `SplitFingerprint.digest`.
        date: of the fit, YYYY-MM-DD.
        held_out: of a fit on half of the images, measured on the other half: "images", "kept" (the share of them that
            is known), and by answer "ece", "nll", "ece_uncalibrated", "nll_uncalibrated"; None where it is not known.
    """

    answers: dict[str, CalibratedAnswer]
    keep: float
    images: int
    dataset: str
    split: str | None
    data: str
    date: str
    held_out: dict[str, Any] | None = None

    def apply(self, logits: Mapping[str, Tensor], branch: str | None = None) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities, (N, C) float64 on CPU, and whether each image is known, (N,) bool.

        Args:
            logits: (N, C) of each branch that answers.
            branch: "sa" or "glca", if that one answers alone.
        """
        logits = {name: each.cpu().double() for name, each in logits.items()}  # MPS has no float64
        answer = self.answers[branch or TOGETHER]
        temperatures = {name: self.answers[name].temperature for name in logits}
        probabilities = F.softmax(log_mean_probability(logits) / answer.temperature, dim=-1)
        score = confidence(answer.score, logits, temperatures, answer.temperature)
        return probabilities, score >= answer.threshold

    def of_probabilities(self, probabilities: Tensor, branch: str | None = None) -> Tensor:
        """Calibrated probabilities, (N, C) float64 on CPU, of uncalibrated ones, (N, C), of one answer."""
        temperature = self.answers[branch or TOGETHER].temperature
        return F.softmax(probabilities.cpu().double().log() / temperature, dim=-1)

    def to_json(self) -> str:
        """Text that `from_json` reads."""
        values = asdict(self)
        if self.held_out is None:  # as in files from before it was kept
            del values["held_out"]
        return json.dumps({"format_version": FORMAT_VERSION, **values})

    @classmethod
    def from_json(cls, content: str, source: str) -> "Calibration":
        """Reads what `to_json` wrote; `source` is where it is from, for errors.

        Raises:
            InputError: invalid content, a later version, or impossible numbers.
        """
        with reading(source):
            read = json.loads(content)
            check_version(read["format_version"], source)
            answers = {text(name): _answer(values) for name, values in read["answers"].items()}
            keep = number(read["keep"], 0, 1)
            if not keep:
                raise ValueError("keep: expected a share above 0")
            return cls(
                answers,
                keep,
                count(read["images"]),
                text(read["dataset"]),
                None if read["split"] is None else text(read["split"]),
                text(read["data"]),
                text(read["date"]),
                _held_out(read.get("held_out"), answers),
            )

    def check_fits(self, branches: Iterable[str], predicting: Iterable[str], source: str) -> None:
        """Checks that it fits the model of the same file.

        Args:
            branches: the model's branches at inference.
            predicting: those that predict jointly.

        Raises:
            InputError: answers are missing or superfluous, or a score needs branches that the model does not have.
        """
        wanted = {TOGETHER, *branches}
        if self.answers.keys() != wanted:
            raise InputError(
                f"{source}: calibration: expected answers of {', '.join(sorted(wanted))}, got "
                f"{short_repr(sorted(self.answers))}"
            )
        together = len([*predicting])
        for name, answer in self.answers.items():
            if answer.score == "agreement" and (name != TOGETHER or together != 2):
                raise InputError(f"{source}: calibration: the score agreement of {name} needs SA and GLCA")


def _answer(read: dict[str, Any]) -> CalibratedAnswer:
    if read["score"] not in SCORES:
        raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {short_repr(read['score'])}")
    temperature, kept = number(read["temperature"], 1e-3, 1e3), number(read["kept"], 0, 1)
    return CalibratedAnswer(temperature, read["score"], number(read["threshold"]), kept)


def _held_out(read: dict[str, Any] | None, answers: Iterable[str]) -> dict[str, Any] | None:
    if read is None:
        return None
    measures = {name: {measure: number(read[name][measure], 0) for measure in MEASURES} for name in answers}
    return {"images": count(read["images"]), **measures, "kept": number(read["kept"], 0, 1)}
