"""Every kind of model that can be trained is exported and passes the gate, or is refused with what it is."""

import pytest

from dual_cross_attention.export.onnx_export import export_fp32
from dual_cross_attention.export.sample_images import synthetic_images
from dual_cross_attention.inference.model_files import read_model
from tests.backbones.oracles import CAIT, CASES, SWIN
from tests.export.models import TINY, write_model

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
SIZES = TINY["backbone_kwargs"]
KINDS = {
    "sa_only": {"ablation": "sa_only"},
    "sa_pwca": {"ablation": "sa_pwca"},
    "sa_glca": {"ablation": "sa_glca"},
    "distilled": {"backbone": "deit_tiny_distilled_patch16_224"},
    "registers": {"backbone_kwargs": SIZES | {"reg_tokens": 4}},
    "layer scale, RMS norm of queries and keys": {"backbone_kwargs": SIZES | {"init_values": 0.1, "qk_norm": True}},
    "a rectangle": {"img_size": [24, 48], "resize_size": [28, 50]},
    "penultimate": {"local_queries": "penultimate"},
    "random": {"local_queries": "random"},
    "local_only": {"local_queries": "local_only", "local_ratio": 0.4},
    "cross": {"local_queries": "cross", "local_ratio": 0.4},
    "two GLCA blocks": {"glca_blocks": 2, "local_ratio": 0.4},
    "all patches local": {"local_ratio": 1.0},
    "re-ID": {"task": "reid"},
    "re-ID, SA alone": {"task": "reid", "ablation": "sa_only", "feature": "after_neck", "normalize_features": False},
}


FAMILIES = {
    case.name: {
        "backbone": case.name,
        "backbone_kwargs": {name: value for name, value in case.kwargs.items() if name != "drop_path_rate"},
        "img_size": [*case.sizes[1]],
    }
    for case in [*CASES, *CAIT, *SWIN]
    if case.name
    in (
        "cait_xxs24_224",
        "eva02_tiny_patch14_224",
        "swin_base_patch4_window12_384",
        "swin_s3_tiny_224",
        "vit_small_patch16_dinov3",
        "vit_small_patch16_rope_mixed_ape_224",
        "vit_base_patch16_sapiens2",
        "vit_base_patch16_siglip_224",
        "vit_medium_patch16_reg4_gap_256",
        "vit_small_r26_s32_224",
    )
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *FAMILIES])
def test_the_gate_passes(kind, tmp_path):
    settings = {"task": "fgvc"} | (KINDS | FAMILIES)[kind]
    task = settings.pop("task")
    saved = read_model(write_model(tmp_path / "x.safetensors", task, ["ant", "bee", "cat"], **settings))
    branches, file = saved.model.predicting_branches, tmp_path / "x.onnx"
    result = export_fp32(saved, branches, file, synthetic_images(task, 8), "synthetic images")
    assert not result.failures() and file.exists()
    assert branches == (["sa"] if settings.get("ablation") in ("sa_only", "sa_pwca") else ["sa", "glca"])
