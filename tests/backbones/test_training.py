"""Training, saving, loading, resuming and explaining a model of each family, by the command line and from Python."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from dual_cross_attention import create_model, explain, load_model
from dual_cross_attention.explanation.maps import attention_maps
from dual_cross_attention.explanation.matching import match_scores
from tests.backbones.oracles import CASES
from tests.helpers import assert_same_run

SMALL = '{"embed_dim": 48, "num_heads": 3, "depth": 2}'
TRAINED = [
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_base_patch16_siglip_224",
    "vit_small_r26_s32_224",
    "cait_xxs24_224",
]
ENCODED = [
    "vit_small_patch16_dinov3",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_pe_core_tiny_patch16_384",
    "beit3_base_patch16_224",
]


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_can_be_resumed_loaded_and_explained(dcal, small, tmp_path, name):
    """Killed between its epochs, it ends as one that was not; with augmentation of the rotary table, if any."""
    kwargs = SMALL if "rope" not in name else SMALL.replace("}", ', "rope_rescale_coords": 2.0}')
    flags = [flag for flag in small if "backbone" not in flag]
    flags += [f"--backbone={name}", f"--backbone_kwargs={kwargs}", "--use_gradient_checkpointing=true"]
    assert dcal("train", *flags, "--output_dir", tmp_path / "whole").status == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(max((tmp_path / "resumed" / "checkpoints").iterdir()))
    outcome = dcal("train", *flags, "--output_dir", tmp_path / "resumed")
    assert outcome.status == 0 and "resum" in outcome.out + outcome.err
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
    loaded = load_model(tmp_path / "whole", device="cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    assert loaded.predict(image).label in loaded.labels
    found = loaded.explain(image, gradient=True)
    assert np.isfinite(found.rollout).all() and np.isfinite(found.gradient).all() and found.glca is not None


@pytest.mark.parametrize("case", [case for case in CASES if "siglip" in case.name or "gap" in case.name], ids=str)
def test_maps_of_a_pooled_backbone_are_its_pools(case):
    """Of each layer, the rows of all patches weighted as the pool reads them; GLCA's, as its own pool reads."""
    model = case.create(ablation="sa_glca").eval()
    images = case.images()
    maps = attention_maps(model, images)
    with torch.no_grad():
        trace = model.trace(images)
    assert_close(trace.start.sum(1), torch.ones(3))
    weights = (trace.queries[1] @ trace.keys[1].transpose(-2, -1) / trace.keys[1].shape[-1] ** 0.5).softmax(-1).mean(1)
    expected = torch.einsum("bn,bnm->bm", trace.start.double(), weights)
    prefix = model.backbone.num_prefix_tokens
    assert_close(maps.layers[:, 1].flatten(1), expected[:, prefix:].float(), atol=1e-6, rtol=1e-4)
    assert_close(trace.glca.sum(1), torch.ones(3))
    assert_close(maps.rollout.flatten(1), model(images).rollout, atol=1e-6, rtol=1e-5)
    for method in ("pwca", "cosine"):
        assert match_scores(model, images[:1], images[1:2], method).shape == (1, 15, 15)


def test_rotary_augmentation_is_sampled_from_torchs_generator_in_training_alone():
    kwargs = {"embed_dim": 48, "num_heads": 3, "depth": 2, "rope_rescale_coords": 2.0}
    model = create_model("vit_small_patch16_dinov3", 5, img_size=64, ablation="sa_only", **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 64, 64)

    def logits(seed):
        torch.manual_seed(seed)
        return model(images).logits["sa"].detach()

    assert torch.equal(logits(1), logits(1)) and not torch.allclose(logits(1), logits(2))
    model.eval()
    assert torch.equal(logits(1), logits(2))


def test_a_timm_model_of_any_family_can_be_explained():
    case = next(case for case in CASES if case.name == "vit_base_patch16_siglip_224")
    model = case.create(ablation="sa_only").eval()
    found = explain(model.backbone.float(), Image.new("RGB", (80, 48), (9, 99, 199)), gradient=True)
    assert found.rollout.shape == (3, 5)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ENCODED], ids=str)
def test_features_of_a_frozen_backbone_decide_as_its_images(case):
    """What is cached of `--freeze all`: tokens and scores; positions are those of the input size."""
    model = case.create(ablation="sa_glca", glca_blocks=2)
    model.freeze("all")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(name.startswith(("glca_", "more_glca_", "backbone.head.")) for name in trained)
    model.eval()
    with torch.no_grad():
        out, again = model(case.images()), model.forward_encoded(model.encode(case.images()))
    assert torch.equal(out.local, again.local)
    for branch in ("sa", "glca"):
        assert_close(again.logits[branch], out.logits[branch])
