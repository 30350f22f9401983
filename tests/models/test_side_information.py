"""Side information embedding: a learned vector per camera, added to all tokens; nothing for an unknown one."""

import pytest
import torch

from dual_cross_attention import create_model
from dual_cross_attention.errors import InputError
from dual_cross_attention.models.side_information import UNKNOWN, SideInformation
from tests.helpers import TINY_VIT, random_images

FAMILIES = {
    "vit_tiny_patch16_224": TINY_VIT,
    "eva02_tiny_patch14_224": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_tiny_r_s16_p8_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
}


def model_of(name="vit_tiny_patch16_224", cameras=3, **options):
    torch.manual_seed(0)
    size = (64, 64) if "_r_" in name else (32, 48)
    return create_model(name, 5, task="reid", img_size=size, cameras=cameras, **FAMILIES[name], **options), size


def test_the_formula():
    """tokens + λ · embedding of the camera, for every token of the image."""
    torch.manual_seed(0)
    side = SideInformation(4, 6, 2.5)
    assert 0.005 < side.embedding.std() < 0.04
    tokens = torch.randn(3, 7, 6, requires_grad=True)
    out = side(tokens, torch.tensor([2, UNKNOWN, 0]))
    for token in range(7):
        assert torch.allclose(out[0, token], tokens[0, token] + 2.5 * side.embedding[2])
        assert torch.equal(out[1, token], tokens[1, token])
        assert torch.allclose(out[2, token], tokens[2, token] + 2.5 * side.embedding[0])
    out.sum().backward()
    assert torch.allclose(side.embedding.grad, torch.tensor([1.0, 0, 1, 0])[:, None] * 2.5 * 7)


@pytest.mark.parametrize("camera", [4, -2, 100])
def test_a_camera_without_an_embedding_is_an_error(camera):
    with pytest.raises(IndexError):
        SideInformation(4, 6, 3.0)(torch.zeros(1, 2, 6), torch.tensor([camera]))


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    """Known cameras change the features, each in its own way; an unknown one is the model without embeddings."""
    model, size = model_of(name, ablation="sa_glca")
    model.eval()
    images = random_images(1, size).expand(4, -1, -1, -1)
    with torch.no_grad():
        out = model(images, cameras=torch.tensor([0, 1, UNKNOWN, 0])).features["sa"]
        plain = model(images).features["sa"]
        embedded = model.embed(images, "sa")
    assert torch.allclose(out[2], plain[2], atol=1e-6) and torch.allclose(embedded, plain, atol=1e-6)
    assert torch.allclose(out[0], out[3], atol=1e-6)
    assert not torch.allclose(out[0], out[1], atol=1e-4) and not torch.allclose(out[0], out[2], atol=1e-4)


def test_a_pass_by_hand():
    """The vector enters before the first block: the same as if the position embedding had it."""
    model, size = model_of(ablation="sa_only", camera_scale=3.0)
    model.eval()
    images = random_images(2, size)
    with torch.no_grad():
        out = model(images, cameras=torch.tensor([1, 1])).features["sa"]
        model.backbone.pos_embed += 3.0 * model.side_information.embedding[1]
        # timm's class token gets its position embedding, too.
        expected = model(images).features["sa"]
    assert torch.allclose(out, expected, atol=1e-5)


def test_training_reaches_the_embeddings_of_the_batch():
    model, size = model_of()
    model.train()
    out = model(random_images(4, size), cameras=torch.tensor([0, 0, 2, UNKNOWN]))
    sum(each.sum() for each in out.logits.values()).backward()
    grad = model.side_information.embedding.grad.abs().sum(dim=1)
    assert grad[0] > 0 and grad[1] == 0 and grad[2] > 0
    assert "side_information.embedding" in model.no_weight_decay()


def test_distractor_images_are_of_unknown_cameras():
    model, size = model_of(drop_path_rate=0.0)
    model.train()
    images, others = random_images(4, size), random_images(4, size).flip(0)
    out = model(images, distractor_images=others, cameras=torch.tensor([0, 1, 2, 0]))
    plain = model(images, distractor_images=others)
    assert out.features["pwca"].shape == plain.features["pwca"].shape
    assert not torch.allclose(out.features["sa"], plain.features["sa"])


def test_a_model_without_embeddings_refuses_cameras():
    model, size = model_of(cameras=0)
    assert model.side_information is None and not any("side" in name for name in model.state_dict())
    with pytest.raises(InputError, match="side information"):
        model(random_images(2, size), cameras=torch.tensor([0, 1]))
