"""Predictions from logits: the most probable classes, calibrated where the model is."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dual_cross_attention.inference.calibration import Calibration
from dual_cross_attention.inference.prediction import Prediction

NOT_FINITE = "the model's output is NaN or infinite for this image: try --precision fp32"


def answer_logits(
    logits: dict[str, Tensor],
    labels: Sequence[str],
    top_k: int,
    calibration: Calibration | None = None,
    branch: str | None = None,
) -> list[Prediction]:
    """The predictions of n images, without a path; one whose logits are not finite has its `error` set.

    Args:
        logits: (n, classes) of each branch that answers.
        labels: names of the classes.
        top_k: classes of each `Prediction.top`, at most all.
        calibration: of the model; None: probabilities are those of the softmax, and `known` is None.
        branch: "sa" or "glca", if that one answers alone.
    """
    finite = torch.stack([each.isfinite().all(dim=-1) for each in logits.values()]).all(0).tolist()
    probabilities = torch.stack([F.softmax(each, dim=-1) for each in logits.values()]).mean(0)
    values, classes = probabilities.topk(top_k)
    known: list[bool | None] = [None] * len(classes)
    if calibration is not None:
        # Calibration keeps the order of classes: it is the uncalibrated one, also where rounding would decide.
        calibrated, is_known = calibration.apply(logits, branch)
        values, known = calibrated.gather(1, classes.cpu()), is_known.tolist()
    found = []
    for row, indices, each_known, is_finite in zip(values.tolist(), classes.tolist(), known, finite, strict=True):
        if not is_finite:
            found.append(Prediction(None, error=NOT_FINITE))
            continue
        top = [(labels[index], value) for index, value in zip(indices, row, strict=True)]
        found.append(Prediction(None, *top[0], each_known, top))
    return found
