"""Warnings about settings that were given but have no effect on the training."""

from dual_cross_attention.configs.training_config import TrainingConfig

OF_LEARNED_WEIGHTS = ("w_lr_factor", "weight_bound")
OF_GLCA = ("glca_init", "glca_start", "local_queries", "local_ratio", "glca_blocks")
CHOICE_OF_LOCAL_TOKENS = ("local_queries", "local_ratio")
OF_PWCA = (
    "distractors",
    "distractor_root",
    "distractor_stream",
    "distractor_tokens",
    "pwca_blocks",
    "pwca_every",
    "pwca_start",
    "pwca_warmup",
)

OF_AUGMENTATION = ("flip", "padding", "erasing", "color_jitter", "auto_augment", "mixup", "cutmix", "image_noise")
OF_TRAINED_BACKBONE = ("layer_decay", "use_gradient_checkpointing", *OF_AUGMENTATION, *OF_PWCA)

OF_SIDE_INFORMATION = ("sie_coe", "sie_dropout")
OF_CAMERAS = ("sie_cameras",)
OF_VIEWS = ("sie_views", "views")
OF_DISTRACTOR_IMAGES = ("distractor_stream",)


def settings_without_effect(config: TrainingConfig) -> list[str]:
    """A line for each reason why settings have no effect that the command line or a --config file has changed.

    Args:
        config: parsed settings; if `given` is None, no setting counts as given, and nothing is reported.
    """
    lines = []
    for branch, names, ablations in (("GLCA", OF_GLCA, ("full", "sa_glca")), ("PWCA", OF_PWCA, ("full", "sa_pwca"))):
        if config.ablation not in ablations and (changed := _changed(config, names)):
            lines.append(f"no effect: {', '.join(changed)}: ablation {config.ablation} has no {branch}")
    if config.distractors == "noise" and (changed := _changed(config, OF_DISTRACTOR_IMAGES)):
        lines.append(f"no effect: {', '.join(changed)}: with distractors noise there is no second image")
    if config.ablation == "sa_only" and (changed := _changed(config, ("loss_weights",))):
        lines.append(f"no effect: {', '.join(changed)}: ablation sa_only has one loss")
    if config.loss_weights != "learned" and (changed := _changed(config, OF_LEARNED_WEIGHTS)):
        lines.append(f"no effect: {', '.join(changed)}: loss_weights {config.loss_weights} has no learnable w")
    sie = getattr(config, "sie", "none")
    for kind, names in (("camera", OF_CAMERAS), ("view", OF_VIEWS)):
        if kind not in sie and (changed := _changed(config, names)):
            lines.append(f"no effect: {', '.join(changed)}: sie {sie} has no embedding of {kind}s")
    if sie == "none" and (changed := _changed(config, OF_SIDE_INFORMATION)):
        lines.append(f"no effect: {', '.join(changed)}: sie none has no embedding of cameras or views")
    if config.freeze == "all" and (changed := _changed(config, OF_TRAINED_BACKBONE)):
        lines.append(
            f"no effect: {', '.join(changed)}: with freeze all, the backbone is not trained, and there is neither PWCA "
            "nor random augmentation"
        )
    if (config.freeze or config.lora_rank) and config.weights == "none":
        name = f"freeze {config.freeze}" if config.freeze else f"lora_rank {config.lora_rank}"
        lines.append(f"{name}: frozen weights stay random, because weights is none")
    return lines


def choice_of_local_tokens_without_effect(config: TrainingConfig) -> list[str]:
    """At most one such line, of a backbone whose GLCA reads a class token; a pool reads the local tokens themselves."""
    to_all_tokens = config.local_queries in ("rollout", "random", "penultimate")
    chosen_in_vain = config.ablation in ("full", "sa_glca") and config.glca_blocks == 1 and to_all_tokens
    if not (chosen_in_vain and (changed := _changed(config, CHOICE_OF_LOCAL_TOKENS))):
        return []
    return [
        f"no effect: {', '.join(changed)}: with glca_blocks 1, GLCA's class token attends to all tokens, whichever are "
        "local"
    ]


def _changed(config: TrainingConfig, names: tuple[str, ...]) -> list[str]:
    """Those that were given another value than the default."""
    default = type(config)()
    return [
        name
        for name in names
        if name in (config.given or ()) and getattr(config, name, None) != getattr(default, name, None)
    ]
