"""The calibration of each task, as it is kept in the header of a model file."""

import json

from dual_cross_attention.configs.versions import check_version
from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.calibration import Calibration
from dual_cross_attention.inference.json_values import reading
from dual_cross_attention.inference.reid_calibration import ReIDCalibration
from dual_cross_attention.text import short_repr

AnyCalibration = Calibration | ReIDCalibration
CALIBRATIONS: dict[str, type[Calibration] | type[ReIDCalibration]] = {"fgvc": Calibration, "reid": ReIDCalibration}


def read_calibration(text: str, task: str, source: str) -> AnyCalibration:
    """Reads what `to_json` of a task's calibration wrote.

    Args:
        text: untrusted.
        task: of the model.
        source: where the text is from, for errors.

    Raises:
        InputError: it is something else, of another task or a later version, or has invalid numbers.
    """
    with reading(source):
        read = json.loads(text)
        check_version(read["format_version"], source)
        there = read.get("task", "fgvc")  # classifiers were calibrated before re-identification was
        if there != task:
            raise InputError(
                f"{source}: the calibration is of task {short_repr(there)}, and this model is of task {task}"
            )
    return CALIBRATIONS[task].from_json(text, source)
