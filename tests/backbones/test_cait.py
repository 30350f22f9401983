"""CaiT against timm's own code: talking heads, class-attention layers, and what the branches mean there."""

from dataclasses import replace

import pytest
import torch
from timm.models.cait import TalkingHeadAttn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from dual_cross_attention import InputError, create_model
from dual_cross_attention.attention.rollout import row_times_attention
from dual_cross_attention.explanation.gradient_rollout import gradient_rollout
from dual_cross_attention.explanation.maps import attention_maps
from dual_cross_attention.explanation.matching import match_scores
from dual_cross_attention.models.lora import add_lora
from dual_cross_attention.training.messages import STORED_WEIGHTS, attention_memory
from tests.backbones.oracles import CAIT, assert_pwca_is_that_of_separate_passes, glca_rows, weights

BY_NAME = pytest.mark.parametrize("case", CAIT, ids=str)
DISTRACTORS = torch.tensor([2, 0, 1])


class TalkingHeads:
    """Stands in for timm's `TalkingHeadAttn.forward`: written out by heads, over the keys of a distractor too.

    Args:
        distractors: (B,) whose keys and values join; None: none.
    """

    def __init__(self, distractors=None):
        self.distractors = distractors
        self.softmaxes = []

    def __call__(self, module, tokens):
        batch, number, dim = tokens.shape
        heads = module.num_heads
        query, key, value = module.qkv(tokens).view(batch, number, 3, heads, dim // heads).unbind(2)  # (B, N, heads, d)
        if self.distractors is not None:
            key, value = (torch.cat([each, each[self.distractors]], dim=1) for each in (key, value))
        scores = [query[:, :, h] @ key[:, :, h].mT / (dim // heads) ** 0.5 for h in range(heads)]
        mix, then = module.proj_l, module.proj_w
        mixed = [sum(mix.weight[g, h] * scores[h] for h in range(heads)) + mix.bias[g] for g in range(heads)]
        softmaxes = torch.stack([torch.exp(each) / torch.exp(each).sum(-1, keepdim=True) for each in mixed])
        after = [sum(then.weight[g, h] * softmaxes[h] for h in range(heads)) + then.bias[g] for g in range(heads)]
        self.softmaxes.append(softmaxes)  # (heads, B, n, keys)
        out = torch.cat([after[h] @ value[:, :, h] for h in range(heads)], dim=-1)
        return module.proj(out)


def run_written_out(monkeypatch, run, distractors=None):
    """What timm's own code gives with the written-out attention, and its softmaxes."""
    attention = TalkingHeads(distractors)
    with monkeypatch.context() as patched:
        patched.setattr(TalkingHeadAttn, "forward", lambda module, tokens: attention(module, tokens))
        return run(), attention.softmaxes


def class_attentions(layers, class_token, patches):
    """(B, 1 + N) of each class-attention layer, mean over heads, from timm's modules."""
    found, class_token = [], class_token.expand(len(patches), -1, -1)
    for layer in layers:
        joined, attention = layer.norm1(torch.cat([class_token, patches], dim=1)), layer.attn
        query, key = (
            each(joined).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for each in (attention.q, attention.k)
        )
        found.append(weights(query[:, :, :1], key).mean(1)[:, 0])
        class_token = layer(patches, class_token)
    return found


def through_class_layers(attentions):
    """Rows of the explicit product of (1 + N) × (1 + N) matrices: patch tokens are not changed by these layers."""
    product = torch.eye(attentions[0].shape[1], dtype=torch.float64).expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        layer = torch.eye(attention.shape[1], dtype=torch.float64).repeat(len(attention), 1, 1)
        layer[:, 0] = 0.5 * layer[:, 0] + 0.5 * attention
        product = layer @ product
    return product


@BY_NAME
def test_rollout_is_the_explicit_product(case, monkeypatch):
    """From the class token through the class-attention layers, then through the softmaxes before the second mixing."""
    model = case.create(ablation="sa_glca").eval()
    reference, images = case.reference(model), case.images()
    with torch.no_grad():
        out, trace = model(images), model.trace(images)
        features, layers = run_written_out(monkeypatch, lambda: reference.forward_features(images))
        assert_close(reference.forward_features(images), features)
        patches = reference.pos_drop(reference.patch_embed(images) + reference.pos_embed)
        patches = reference.blocks(patches)
        attentions = class_attentions(reference.blocks_token_only, reference.cls_token, patches)
    product = through_class_layers(attentions)
    assert_close(trace.start, product[:, 0, 1:].float(), atol=1e-6, rtol=0)
    for softmax in reversed(layers):
        layer = torch.eye(product.shape[-1], dtype=torch.float64).repeat(len(images), 1, 1)
        layer[:, 1:, 1:] = 0.5 * layer[:, 1:, 1:] + 0.5 * softmax.mean(0)
        product = product @ layer
    expected = product[:, 0, 1:]
    assert expected.std() > 1e-4
    assert_close(out.rollout, expected.float(), atol=1e-6, rtol=0)
    assert torch.equal(out.local, out.rollout.topk(out.local.shape[1]).indices)
    assert_close(attention_maps(model, images).rollout.flatten(1), out.rollout, atol=1e-7, rtol=0)


def test_mixed_scores_are_the_same_in_chunks():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(3, 4, 9, 5, generator=generator) for _ in range(2))
    mixing, row = torch.randn(4, 4, generator=generator), torch.rand(3, 9, generator=generator)
    scores = torch.einsum("gh,bhnm->bgnm", mixing.double(), query.double() @ key.double().mT / 5**0.5)
    expected = torch.einsum("bn,bgnm->bm", row.double(), scores.softmax(-1)) / 4
    assert (row_times_attention(row, query, key) - expected).abs().max() > 0.01
    for max_scores in (None, 1, 4 * 9 * 2, 4 * 9 * 9 * 2):
        assert_close(row_times_attention(row, query, key, max_scores, mixing), expected.float())


@BY_NAME
@pytest.mark.parametrize("checkpointing", [False, True])
def test_pwca_and_gradients_are_those_of_separate_passes(case, checkpointing, monkeypatch):
    """The distractor's keys are mixed and share the softmax; the class-attention layers read the own tokens alone."""
    assert_pwca_is_that_of_separate_passes(case, checkpointing, run_written_out, monkeypatch)


@BY_NAME
@pytest.mark.parametrize("number", [1, 2])
def test_glca_is_patch_blocks_at_the_local_tokens_then_class_attention_of_them(case, number):
    model = case.create(ablation="sa_glca", glca_blocks=number).eval()
    reference, images = case.reference(model), case.images()
    with torch.no_grad():
        out = model(images)
        tokens = reference.blocks(reference.patch_embed(images) + reference.pos_embed)
        rows = glca_rows(model, tokens, out.local, lambda block, _, tokens: block(tokens))
        class_token = model.glca_pool.cls_token.expand(len(images), -1, -1)
        for layer in model.glca_pool.blocks_token_only:
            class_token = layer(rows, class_token)
        assert_close(out.features["glca"], model.glca_norm(class_token)[:, 0])
        assert_close(model.embed(images, branch="glca"), out.features["glca"])
        attentions = class_attentions(model.glca_pool.blocks_token_only, model.glca_pool.cls_token, rows)
        start = through_class_layers(attentions)[:, 0, 1:]
        assert_close(model.trace(images).glca.sum(1), start.sum(1).float())


@BY_NAME
def test_local_tokens_alone_can_be_keys_and_cross_is_refused(case):
    model = case.create(ablation="sa_glca", local_queries="local_only").eval()
    images = case.images()
    with torch.no_grad():
        out = model(images)
        tokens = model.backbone.blocks(model.backbone.patch_embed(images) + model.backbone.pos_embed)
        own = tokens.gather(1, out.local[..., None].expand(-1, -1, tokens.shape[-1]))
        rows = model.glca_block.block(own)
        assert_close(out.features["glca"], model.glca_pool(rows, model.glca_norm))
    with pytest.raises(InputError, match=r"cross.*class attention"):
        case.create(ablation="sa_glca", local_queries="cross")


def test_gradient_rollout_is_of_the_softmax_between_the_mixings(monkeypatch):
    """Its gradient, by autograd of timm's own code with the attention written out."""
    case = CAIT[0]
    model = case.create(ablation="sa_only").eval()
    reference, images, target = case.reference(model), case.images(), torch.tensor([0, 3, 1])
    logits, softmaxes = run_written_out(monkeypatch, lambda: reference(images))
    gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), softmaxes)
    row = model.trace(images).start.double()
    for softmax, gradient in zip(reversed(softmaxes), reversed(gradients), strict=True):
        row = row + torch.einsum("bn,bnm->bm", row, (softmax * gradient).clamp(min=0).mean(0))
    found = gradient_rollout(model, images, target)
    assert_close(found.flatten(1), row.float(), rtol=1e-4, atol=1e-6)


def test_matching_is_the_distractors_half_of_the_joint_softmax(monkeypatch):
    """Of the last block of two images, whose tokens come from SA."""
    model = CAIT[0].create(ablation="sa_only").eval()
    images = CAIT[0].images(batch=2)
    *earlier, last = model.backbone.blocks
    with torch.no_grad():
        tokens = model.backbone.patch_embed(images) + model.backbone.pos_embed
        for block in earlier:
            tokens = block(tokens)
        _, (softmax,) = run_written_out(monkeypatch, lambda: last(tokens), torch.tensor([1, 0]))
    there, back = softmax.mean(0)[:, :, tokens.shape[1] :]
    expected = (there + back.mT) / 2
    assert_close(match_scores(model, images[:1], images[1:], "pwca")[0], expected.float(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_sa_only_costs_what_timms_step_does(training):
    case = CAIT[0]
    model = case.create(ablation="sa_only").train(training)
    reference, images = case.reference(model), case.images()

    for each in (model, reference):
        each.requires_grad_(training)

    def cost(run):
        with FlopCounterMode(display=False) as counter:
            out = run()
            if training:
                out.sum().backward()
        return counter.get_total_flops()

    assert cost(lambda: model(images).logits["sa"]) == cost(lambda: reference(images))


def test_stochastic_depth_is_timms():
    """The factors of both branches come from the block's one module, in timm's order."""
    case = replace(CAIT[0], kwargs=CAIT[0].kwargs | {"drop_path_rate": 0.5})
    model = case.create(ablation="sa_only").float().train()
    reference, images = case.reference(model).float(), case.images().float()
    torch.manual_seed(4)
    expected = reference(images)
    torch.manual_seed(4)
    assert_close(model(images).logits["sa"], expected)
    torch.manual_seed(5)
    assert not torch.allclose(model(images).logits["sa"], expected, atol=1e-2)


@pytest.mark.parametrize("blocks", [1, 3, "all"])
def test_the_class_attention_layers_are_frozen_with_all_alone(blocks):
    model = CAIT[0].create()
    model.freeze(blocks)
    model.train()
    below = 3 if blocks == "all" else blocks
    frozen = ("patch_embed.", "pos_embed", *(f"blocks.{place}." for place in range(below)))
    if blocks == "all":
        frozen += ("cls_token", "blocks_token_only.", "norm.")
    for name, parameter in model.backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    assert all(parameter.requires_grad for parameter in model.glca_pool.parameters())
    assert model.backbone.blocks_token_only.training == (blocks != "all")


def test_features_of_a_frozen_backbone_decide_as_its_images():
    model = CAIT[0].create(ablation="sa_glca", glca_blocks=2)
    model.freeze("all")
    model.eval()
    with torch.no_grad():
        out, again = model(CAIT[0].images()), model.forward_encoded(model.encode(CAIT[0].images()))
    assert torch.equal(out.local, again.local)
    for branch in ("sa", "glca"):
        assert_close(again.logits[branch], out.logits[branch])


def test_lora_reaches_the_class_attention_layers_and_leaves_the_mixings():
    """A rank above the number of heads is no rank of a mixing, which is not reached."""
    model = CAIT[0].create(glca_init="last_block")
    add_lora(model, 5, in_glca=True)
    names = {name.partition(".parametrizations.")[0] for name in model.state_dict() if name.endswith("weight.0.b")}
    assert "backbone.blocks.2.attn.qkv" in names and "backbone.blocks_token_only.1.attn.k" in names
    assert "glca_block.block.mlp.fc1" in names and not any("proj_l" in name or "proj_w" in name for name in names)
    assert len(names) == 3 * 4 + 2 * 6 + 4
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert all("parametrizations" in name or name.startswith("head.") for name in trained)


def test_class_tokens_have_no_weight_decay():
    names = CAIT[0].create(ablation="sa_glca").no_weight_decay()
    assert names == {"backbone.pos_embed", "backbone.cls_token", "glca_pool.cls_token"}
    assert names <= dict(CAIT[0].create(ablation="sa_glca").named_parameters()).keys()


def test_compiled_blocks_give_the_same():
    model, images = CAIT[0].create().train(), CAIT[0].images()
    expected = model(images, DISTRACTORS)
    torch._dynamo.reset()
    model.compile_blocks("eager")
    out = model(images, DISTRACTORS)
    for branch, logits in expected.logits.items():
        assert_close(out.logits[branch], logits)
    assert torch.equal(out.local, expected.local)


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [({"global_pool": "avg"}, "avg"), ({"depth_token_only": 0}, "class-attention"), ({"global_pool": ""}, "''")],
)
def test_a_cait_without_a_class_token_to_classify_is_refused(kwargs, word):
    with pytest.raises(InputError, match=f"does not fit.*{word}"):
        create_model("cait_xxs24_224", 5, img_size=64, depth=2, **kwargs)


@pytest.mark.parametrize(("ablation", "keys"), [("sa_glca", 1), ("full", 3)])
def test_memory_of_attention_weights_is_said(ablation, keys):
    """Against what autograd keeps in the blocks for the backward pass: tensors with a row of weights for each patch."""
    model = CAIT[0].create(ablation=ablation).float().train()
    images, kept = CAIT[0].images(batch=4).float(), {}

    def pack(tensor):
        shape = tuple(tensor.shape)
        if shape[-2:] in ((15, 15), (15, 30)) or shape in ((4 * 15 * 15, 3), (4 * 15 * 30, 3)):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images, torch.tensor([1, 2, 3, 0]), branches=["sa", *(["pwca"] if keys == 3 else [])])
    of_weights = 3 * STORED_WEIGHTS * 4 * 3 * 15 * 15 * keys
    assert sum(tensor.numel() for tensor in kept.values()) == of_weights
    line = attention_memory(model, 4 * 2**14, False)
    number = float(line.partition("about ")[2].split()[0])
    assert number == pytest.approx(4 * of_weights * 2**14 / 2**30, rel=0.05)
    assert "use_gradient_checkpointing" in line
    of_one = float(attention_memory(model, 4 * 2**14, True).partition("about ")[2].split()[0])
    assert of_one == pytest.approx(number / 3, rel=0.1)
    assert attention_memory(create_model("test_vit", 5, img_size=160), 16, False) is None
