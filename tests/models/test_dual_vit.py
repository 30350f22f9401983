"""The dual model: against timm's own forward pass, against separate passes, and what it refuses."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch.nn import functional as F

from dual_cross_attention import InputError, create_model
from dual_cross_attention.attention import attention_rollout, select_local
from dual_cross_attention.backbones.drop_path import DropPathMasks, sample_drop_path
from dual_cross_attention.backbones.plain_vit import PlainViT
from dual_cross_attention.models import ABLATIONS
from dual_cross_attention.models.stacked_block import last_block, stacked_block
from tests.helpers import random_images, sharpen, tiny_model


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(
    "backbone",
    [
        "deit_tiny_patch16_224",
        "vit_small_patch32_224",
        "deit_tiny_distilled_patch16_224",
        "vit_small_patch14_reg4_dinov2",
    ],
)
def test_sa_is_timms_own_forward(backbone, ablation):
    torch.manual_seed(0)
    size = (84, 112) if "patch14" in backbone else (64, 96)
    model = sharpen(create_model(backbone, 7, img_size=size, ablation=ablation), 6.0).eval()
    reference = timm.create_model(backbone, num_classes=7, img_size=size).eval()
    reference.load_state_dict(model.backbone.state_dict())  # original names, strict
    inputs = random_images(2, size)
    with torch.no_grad():
        out = model(inputs)
        tokens = reference.forward_features(inputs)
        torch.testing.assert_close(out.features["sa"], tokens[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.logits["sa"], reference.forward_head(tokens), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.logits["sa"], reference(inputs), atol=1e-5, rtol=1e-5)


def test_sa_only_is_timms_model_and_nothing_more():
    model = tiny_model("sa_only").train()
    assert all(name.startswith("backbone.") for name, _ in model.named_parameters())
    out = model(random_images(3))
    assert set(out.logits) == {"sa"} and out.rollout is None and out.local is None
    torch.testing.assert_close(out.logits["sa"], model.backbone(random_images(3)))


@pytest.mark.parametrize(
    ("ablation", "in_training", "in_evaluation"),
    [
        ("sa_only", {"sa"}, {"sa"}),
        ("sa_glca", {"sa", "glca"}, {"sa", "glca"}),
        ("sa_pwca", {"sa", "pwca"}, {"sa"}),
        ("full", {"sa", "glca", "pwca"}, {"sa", "glca"}),
    ],
)
def test_branches_of_each_ablation(ablation, in_training, in_evaluation):
    model = tiny_model(ablation)
    assert set(model.train()(random_images(3)).logits) == in_training == set(model.branches)
    out = model.eval()(random_images(1))  # one image is enough without PWCA
    assert set(out.logits) == set(out.features) == in_evaluation
    assert out.features["sa"].shape == (1, 48) and out.logits["sa"].shape == (1, 5)


def test_rollout_and_local_are_those_of_the_backbones_queries_and_keys():
    model = tiny_model("sa_glca", local_ratio=0.25, sharpness=6.0).eval()
    queries, keys = [], []

    def keep(attention, inputs, _):
        qkv = attention.qkv(inputs[0]).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
        queries.append(qkv[0])
        keys.append(qkv[1])

    hooked = copy.deepcopy(model.backbone)
    for block in hooked.blocks:
        block.attn.register_forward_hook(keep)
    hooked(random_images(3))
    out = model(random_images(3))
    expected = attention_rollout(queries, keys)
    torch.testing.assert_close(out.rollout, expected[:, 1:])
    assert torch.equal(out.local, select_local(expected[:, 1:], 0.25))
    assert out.local.shape == (3, 6)


def test_glca_reads_the_tokens_before_the_final_norm_and_gives_its_class_token():
    model = tiny_model("sa_glca", sharpness=6.0).eval()
    out = model(random_images(3))
    tokens = model.backbone.blocks(model.backbone._pos_embed(model.backbone.patch_embed(random_images(3))))
    expected = model.glca_norm(model.glca_block(tokens, out.local))[:, 0]
    torch.testing.assert_close(out.features["glca"], expected)
    torch.testing.assert_close(out.logits["glca"], F.linear(expected, model.glca_head.weight, model.glca_head.bias))


class Separate(torch.nn.Module):
    """SA and PWCA as two plain passes, with explicit attention: what the stacked pass must equal."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs, distractors):
        vit = self.model.backbone
        streams = {"sa": vit._pos_embed(vit.patch_embed(inputs))}
        streams["pwca"] = streams["sa"]
        for block in vit.blocks:
            before = {}
            for name, tokens in streams.items():
                qkv = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, block.attn.num_heads, -1))
                before[name] = qkv.permute(2, 0, 3, 1, 4)
            other = before["sa" if self.model.clean_distractors else "pwca"]
            for name, (query, key, value) in before.items():
                if name == "pwca":
                    key = torch.cat([key, other[1][distractors]], dim=2)
                    value = torch.cat([value, other[2][distractors]], dim=2)
                weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
                merged = (weights @ value).transpose(1, 2).flatten(2)
                tokens = streams[name] + block.attn.proj(merged)
                streams[name] = tokens + block.mlp(block.norm2(tokens))
        return {name: vit.head(vit.norm(tokens)[:, 0]) for name, tokens in streams.items()}


@pytest.mark.parametrize("stream", ["pwca", "sa"])
def test_stacked_pass_has_the_outputs_and_gradients_of_separate_passes(stream):
    model = tiny_model("sa_pwca", distractor_stream=stream, sharpness=3.0).double().train()
    inputs, distractors = random_images(4).double(), torch.tensor([2, 0, 3, 1])
    labels = torch.tensor([0, 1, 2, 3])

    def gradients(logits):
        loss = F.cross_entropy(logits["sa"], labels) + 0.7 * F.cross_entropy(logits["pwca"], labels)
        model.zero_grad()
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    stacked = model(inputs, distractors).logits
    separate = Separate(model)(inputs, distractors)
    for branch in ("sa", "pwca"):
        torch.testing.assert_close(stacked[branch], separate[branch])
    assert (stacked["sa"] - stacked["pwca"]).abs().max() > 1e-3
    ours, theirs = gradients(stacked), gradients(separate)
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=1e-10, rtol=1e-7, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_the_distractors_are_drawn_anew_and_follow_the_seed():
    model = tiny_model("sa_pwca").train()

    def pwca(seed):
        torch.manual_seed(seed)
        return model(random_images(6)).logits["pwca"]

    assert torch.equal(pwca(0), pwca(0))
    assert not torch.equal(pwca(0), pwca(1))


def test_every_block_has_its_stochastic_depth(monkeypatch):
    """Where all residual branches are dropped, tokens leave as they came: the backbone's blocks and GLCA's."""
    monkeypatch.setattr("torch.Tensor.bernoulli_", lambda tensor, *_: tensor.zero_())
    model = tiny_model("full", drop_path_rate=0.5).train()
    blocks = []
    for block in model.backbone.blocks:
        blocks.append(sample_drop_path(block, 4, torch.device("cpu")))
    assert blocks[0] is None and all((mask == 0).all() for masks in blocks[1:] for mask in masks)

    seen = {}
    model.glca_block.register_forward_hook(lambda _, given, out: seen.update(tokens=given[0], out=out))
    local = model(random_images(4)).local
    gathered = seen["tokens"].gather(1, (local + 1).unsqueeze(-1).expand(-1, -1, 48))
    torch.testing.assert_close(seen["out"], torch.cat([seen["tokens"][:, :1], gathered], dim=1), atol=0, rtol=0)

    one_block = Block(dim=48, num_heads=3)
    tokens, nothing = torch.randn(4, 6, 48), DropPathMasks(torch.zeros(4, 1, 1), torch.zeros(4, 1, 1))
    assert torch.equal(stacked_block(one_block, PlainViT(), tokens, None, None, nothing)[0], tokens)
    sa, pwca, *_ = last_block(one_block, PlainViT(), tokens, None, torch.tensor([1, 0]), nothing)
    assert torch.equal(sa, tokens[:2]) and torch.equal(pwca, tokens[2:, :1])


def test_odd_batch_works_and_a_batch_of_one_is_refused_in_training_with_pwca():
    assert tiny_model("full").train()(random_images(3)).logits["pwca"].shape == (3, 5)
    for ablation in ("full", "sa_pwca"):
        with pytest.raises(InputError, match="batch_size >= 2"):
            tiny_model(ablation).train()(random_images(1))
    assert tiny_model("sa_glca").train()(random_images(1)).logits["glca"].shape == (1, 5)


def test_predict_and_embed():
    model = tiny_model("full").eval()
    out = model(random_images(3))
    sa, glca = (out.logits[branch].softmax(-1) for branch in ("sa", "glca"))
    torch.testing.assert_close(model.predict(random_images(3)), (sa + glca) / 2)
    torch.testing.assert_close(model.predict(random_images(3), branch="sa"), sa)
    torch.testing.assert_close(model.predict(random_images(3), branch="glca"), glca)
    torch.testing.assert_close(model.embed(random_images(3)), torch.cat([out.features["sa"], out.features["glca"]], 1))
    torch.testing.assert_close(model.embed(random_images(3), branch="glca"), out.features["glca"])
    assert not model.predict(random_images(3)).requires_grad
    plain = tiny_model("sa_only").eval()
    torch.testing.assert_close(plain.predict(random_images(3)), plain.predict(random_images(3), branch="sa"))
    for branch in ("glca", "pwca", "nope"):
        with pytest.raises(InputError, match="no branch"):
            plain.predict(random_images(3), branch=branch)
    with pytest.raises(InputError, match=r"model\.eval"):
        model.train().predict(random_images(3))


def test_glca_starts_at_random_or_as_the_last_block():
    copied, fresh = tiny_model(glca_init="last_block"), tiny_model(glca_init="random")
    for name, parameter in copied.glca_block.block.named_parameters():
        assert torch.equal(parameter, copied.backbone.blocks[-1].get_parameter(name))
        assert parameter is not copied.backbone.blocks[-1].get_parameter(name)
    last = fresh.backbone.blocks[-1]
    assert not torch.equal(fresh.glca_block.block.attn.qkv.weight, last.attn.qkv.weight)
    assert fresh.glca_block.block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(fresh.glca_head.weight, fresh.backbone.head.weight)


def test_state_dict_goes_back_to_timm_with_original_names(tmp_path):
    from safetensors.torch import load_file, save_file

    model = create_model("deit_tiny_patch16_224", 7, img_size=64)
    save_file(model.backbone.state_dict(), tmp_path / "backbone.safetensors")
    reference = timm.create_model("deit_tiny_patch16_224", num_classes=7, img_size=64)
    reference.load_state_dict(load_file(tmp_path / "backbone.safetensors"), strict=True)
    again = create_model("deit_tiny_patch16_224", 7, img_size=64, pretrained=str(tmp_path / "backbone.safetensors"))
    for name, value in reference.state_dict().items():
        assert torch.equal(value, again.backbone.state_dict()[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "deit_tiny_patch16"}, "did you mean deit_tiny_patch16_224"),
        ({"backbone": "resnet50"}, "none of the families"),
        ({"backbone": "deit_tiny_patch16_224", "global_pool": "avgmax"}, "no class token, mean"),
        ({"backbone": "vit_tiny_patch16_224", "global_pool": "avg", "local_queries": "cross"}, "class token"),
        ({"backbone": "deit_tiny_patch16_224", "img_size": 100}, "take 96x96 or 112x112"),
        ({"backbone": "deit_tiny_patch16_224", "img_size": (64, 60)}, "64x60 is not a multiple"),
        ({"backbone": "deit_tiny_patch16_224", "patch_drop_rate": 0.2}, "patch_drop_rate"),
        ({"backbone": "vit_base_patch16_xp_224", "depth": 1}, "ParallelScalingBlock"),
        ({"backbone": "deit_tiny_patch16_224", "nonsense": 1}, "nonsense"),
        ({"backbone": "deit_tiny_patch16_224", "ablation": "glca"}, "there are full, sa_only, sa_glca, sa_pwca"),
        ({"backbone": "deit_tiny_patch16_224", "num_classes": 1}, "at least two classes"),
        ({"backbone": "deit_tiny_patch16_224", "local_ratio": 0}, "local_ratio"),
        ({"backbone": "deit_tiny_patch16_224", "task": "nope"}, "there is fgvc"),
        ({"backbone": "deit_tiny_patch16_224", "glca_init": "nope"}, "random, last_block"),
    ],
)
def test_what_cannot_work_is_refused_and_says_what_can(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model(**{"num_classes": 5, "img_size": 64, **arguments})
