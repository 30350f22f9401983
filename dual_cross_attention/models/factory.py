"""Creates a DCAL model: a timm backbone, its weights, and the branches of an ablation."""

from typing import Any, Literal

from dual_cross_attention.backbones.create import create_backbone, load_pretrained
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.dual_vit import Ablation, DualCrossAttentionViT
from dual_cross_attention.models.glca import LocalQueries
from dual_cross_attention.weights import load_glca

LOCAL_RATIOS = {"fgvc": 0.1, "reid": 0.3}
"""R of the paper, by task."""


def create_model(
    backbone: str,
    num_classes: int,
    task: str = "fgvc",
    img_size: int | tuple[int, int] = 448,
    ablation: Ablation = "full",
    local_ratio: float | None = None,
    pretrained: bool | str = False,
    glca_init: Literal["random", "last_block"] = "last_block",
    distractor_stream: Literal["pwca", "sa"] = "pwca",
    pwca_blocks: int | None = None,
    distractor_tokens: float = 1.0,
    local_queries: LocalQueries = "rollout",
    glca_blocks: int = 1,
    distractor_noise: bool = False,
    weights_key: str | None = None,
    weights_img_size: int | tuple[int, int] | None = None,
    cameras: int = 0,
    camera_scale: float = 3.0,
    **timm_kwargs: Any,
) -> DualCrossAttentionViT:
    """A DCAL model over a timm backbone.

    Args:
        backbone: timm's name of a model, such as `deit_tiny_patch16_224`; `list_backbones()` has all that there are.
        num_classes: width of each classifier: classes, or training identities.
        task: "fgvc", or "reid": a BN neck before a bias-free classifier in every branch. It decides the default of R.
        img_size: input size in pixels, int or (height, width); position embeddings are resampled to it.
        ablation: "full" (SA + GLCA + PWCA), "sa_glca", "sa_pwca", or "sa_only": the plain timm model, the baseline.
        local_ratio: R, share of patch tokens that are local queries; None is the paper's (0.1 for fgvc, 0.3 for reid).
        pretrained: False, True (timm's weights), or a path: .safetensors, .pth, .npz, …, or a run of this project,
            whose GLCA is taken too. `backbone.pretrained_cfg` of the model then has the mean and std of its pixels, if
            the file, or a timm `config.json` next to it, names them.
        glca_init: "random", or "last_block" to start GLCA's M blocks as copies of the backbone's last M, and its norm.
        distractor_stream: the rows whose keys and values distract: the distractor's "pwca" stream, or its "sa" one.
        pwca_blocks: T, PWCA in the last T blocks; below, its stream is SA's and is computed once. None: all blocks.
        distractor_tokens: share of the distractor's patch tokens that are keys and values, beside its class token.
        local_queries, glca_blocks: how local tokens are chosen and what they attend to, and M, the number of GLCA's
            blocks; see `DualCrossAttentionViT`.
        distractor_noise: PWCA's second keys and values are Gaussian noise, not those of a second image.
        weights_key: of a path: the nested dict or prefix of names to take, such as "teacher"; None: the one that fits.
        weights_img_size: of a path: int or (height, width) in pixels that the file was trained at, where it cannot be
            known from the file; None: what the file says, else a square.
        cameras, camera_scale: number of cameras, views, or pairs of both with a side information embedding (0: it has
            none), and its factor.
        **timm_kwargs: passed on to `timm.create_model`: `drop_path_rate=0.1`, …

    Raises:
        InputError: anything of the above that cannot work; the message lists what can.
    """
    if task not in LOCAL_RATIOS:
        raise InputError(f"unknown task '{task}': there is {', '.join(LOCAL_RATIOS)}")
    if num_classes < 2:
        raise InputError(f"expected at least two classes to tell apart, got num_classes={num_classes}")
    height, width = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    reid = task == "reid"
    vit = create_backbone(backbone, 0 if reid else num_classes, (height, width), **timm_kwargs)
    trained_at = (weights_img_size, weights_img_size) if isinstance(weights_img_size, int) else weights_img_size
    loaded = load_pretrained(vit, backbone, pretrained, weights_key, trained_at and (trained_at[0], trained_at[1]))
    ratio = LOCAL_RATIOS[task] if local_ratio is None else local_ratio
    necks = num_classes if reid else None
    model = DualCrossAttentionViT(  # copies loaded weights
        vit,
        ablation,
        ratio,
        glca_init,
        distractor_stream,
        necks,
        pwca_blocks,
        distractor_tokens,
        local_queries,
        glca_blocks,
        distractor_noise,
        cameras,
        camera_scale,
    )
    if loaded:
        load_glca(model, loaded, glca_init)
        model.pretrained_stats = loaded.stats
    return model
