"""Which settings make a command another run than one that exists, and the settings with which a run resumes."""

from dataclasses import asdict

from dual_cross_attention.configs.parse import as_of
from dual_cross_attention.configs.training_config import TrainingConfig

# A run may resume with these changed: they say where and how it runs, not what it computes.
FREE_TO_CHANGE = {
    "data_root",
    "distractor_root",
    "views",
    "download",
    "device",
    "compile",
    "parallel",
    "cache",
    "num_workers",
    "eval_batch_size",
    "checkpoint_minutes",
    "max_bad_images",
    "use_gradient_checkpointing",
    "output_dir",
    "resume",
    "log_with",
    "tracker_project",
    "sample_images",
}

# Settings that are resolved when a run begins, by the value that leaves them open: a resumed run keeps its own.
LEFT_OPEN = {
    "precision": ("auto",),
    "mean": ("auto", None),
    "std": ("auto", None),
    "cameras": ("auto",),
    "bbox": ("crop",),
    "sie_cameras": ((),),
    "sie_views": ((),),
}


def setting_differences(config: TrainingConfig, stored: TrainingConfig) -> list[tuple[str, str]]:
    """Settings that make a command another run than a stored one: name, and "name (value there, value here)".

    Args:
        config: the settings of the command.
        stored: those of the run.
    """
    old, new = asdict(stored), asdict(resumed_settings(config, stored))
    return [
        (name, f"{name} ({old.get(name)} there, {new[name]} here)")
        for name in new
        if name not in FREE_TO_CHANGE and old.get(name) != new[name]
    ]


def resumed_settings(config: TrainingConfig, stored: TrainingConfig) -> TrainingConfig:
    """The settings with which a run resumes.

    Args:
        config: those of the command.
        stored: those of the run. Where the command does not name a setting whose default has changed since, the run
            keeps the default of its time; what the command leaves open, such as precision "auto", is as the run has it.
    """
    config = as_of(config, stored.format_version)
    if stored.format_version == 1:  # such a run has resolved nothing
        return config
    kept = [name for name, left_open in LEFT_OPEN.items() if getattr(config, name, "") in left_open]
    return config.replaced(**{name: getattr(stored, name) for name in kept})
