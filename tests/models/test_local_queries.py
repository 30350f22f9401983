"""GLCA's local queries and blocks in a row, against loops over tokens."""

import math

import pytest
import torch
from timm.models.vision_transformer import Block
from torch.nn import functional as F

from dual_cross_attention import InputError
from dual_cross_attention.attention import GlobalLocalBlock, attention_rollout
from dual_cross_attention.backbones.plain_vit import PlainViT
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.configs.without_effect import choice_of_local_tokens_without_effect, settings_without_effect
from dual_cross_attention.inference.model_files import build_model
from dual_cross_attention.models import branch_heads
from dual_cross_attention.models.glca import LOCAL_QUERIES
from tests.helpers import assert_compiled_blocks_compute_the_same, random_images, tiny_model


def tiny(ablation="sa_glca", **kwargs):
    return tiny_model(ablation, sharpness=6, **{"local_ratio": 0.25, **kwargs})


def explicit_block(block, tokens, queries, context):
    """One image, token by token: tokens (N, D) → the rows of `queries`, which attend to the rows of `context`."""
    attention, dim = block.attn, tokens.shape[-1]
    head_dim = dim // attention.num_heads
    normed = F.layer_norm(tokens, (dim,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
    query, key, value = F.linear(normed, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
    rows = []
    for token in queries:
        merged = []
        for head in range(attention.num_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            scores = torch.stack([key[other, part] @ query[token, part] / math.sqrt(head_dim) for other in context])
            weights = scores.exp() / scores.exp().sum()
            merged.append(sum(weight * value[other, part] for weight, other in zip(weights, context, strict=True)))
        row = tokens[token] + F.linear(torch.cat(merged), attention.proj.weight, attention.proj.bias)
        hidden = F.layer_norm(row, (dim,), block.norm2.weight, block.norm2.bias, block.norm2.eps)
        hidden = F.gelu(F.linear(hidden, block.mlp.fc1.weight, block.mlp.fc1.bias))
        rows.append(row + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias))
    return torch.stack(rows)


def attended(attends, prefix, local, tokens):
    """Which tokens have a query, and what they attend to."""
    of_prefix, of_local = [*range(prefix)], [prefix + place for place in local]
    return {
        "global": (of_prefix + of_local, range(tokens)),
        "local_only": (of_prefix + of_local, of_prefix + of_local),
        "cross": (of_prefix, of_local),
    }[attends]


@pytest.mark.parametrize("attends", ["global", "local_only", "cross"])
@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_blocks_in_a_row_equal_loops_over_tokens(attends, prefix, number):
    torch.manual_seed(0)
    blocks = [GlobalLocalBlock(Block(24, 3, qkv_bias=True).double().eval(), prefix, attends) for _ in range(number)]
    tokens = torch.randn(2, prefix + 8, 24, dtype=torch.float64)
    local = torch.tensor([[4, 0, 7], [1, 2, 3]])
    stream = tokens
    for block in blocks[:-1]:
        stream = block.update(stream, local)
    out = blocks[-1](stream, local)
    for i in range(2):
        queries, context = attended(attends, prefix, local[i].tolist(), tokens.shape[1])
        expected = tokens[i].clone()
        for block in blocks:
            rows = explicit_block(block.block, expected, queries, context)
            expected = expected.clone()
            expected[queries] = rows
        torch.testing.assert_close(out[i], expected[queries])


def test_with_all_tokens_local_they_are_ordinary_blocks():
    torch.manual_seed(0)
    blocks = [Block(24, 3, qkv_bias=True).double().eval() for _ in range(2)]
    tokens, everything = torch.randn(2, 9, 24, dtype=torch.float64), torch.arange(8).expand(2, -1)
    first, second = (GlobalLocalBlock(block, 1) for block in blocks)
    ours = second(first.update(tokens, everything), everything)
    torch.testing.assert_close(ours, blocks[1](blocks[0](tokens)))


def layers_of(model, inputs):
    """Queries and keys of every layer, and the tokens after the last, by timm's own blocks."""
    vit, queries, keys = model.backbone, [], []
    tokens = vit._pos_embed(vit.patch_embed(inputs))
    for block in vit.blocks:
        query, key, _ = PlainViT().project(block, block.norm1(tokens), None)
        queries.append(query)
        keys.append(key)
        tokens = block(tokens)
    return queries, keys, tokens


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("local_queries", ["rollout", "penultimate", "local_only", "cross"])
@pytest.mark.parametrize("number", [1, 2])
def test_glca_by_its_definition(local_queries, number, checkpointing):
    model = tiny(local_queries=local_queries, glca_blocks=number).double().train()
    model.set_grad_checkpointing(checkpointing)
    out = model(random_images(3).double())
    queries, keys, tokens = layers_of(model, random_images(3).double())
    if local_queries == "penultimate":
        weights = (queries[-2] @ keys[-2].transpose(-2, -1) / 4).softmax(-1)
        scores = weights.mean(1)[:, 0, 1:].float()
    else:
        scores = attention_rollout(queries, keys)[:, 1:]
    torch.testing.assert_close(out.rollout, scores)
    assert torch.equal(out.local, scores.topk(6).indices)
    attends = local_queries if local_queries in ("local_only", "cross") else "global"
    for i in range(3):
        asks, context = attended(attends, 1, out.local[i].tolist(), 25)
        stream = tokens[i]
        for block in model.glca_blocks:
            rows = explicit_block(block.block, stream, asks, context)
            stream = stream.clone()
            stream[asks] = rows
        torch.testing.assert_close(out.features["glca"][i], model.glca_norm(stream[0]))


def test_random_tokens_are_sampled_in_training_and_fixed_elsewhere():
    model = tiny(local_queries="random").train()

    def local(seed, batch=4):
        torch.manual_seed(seed)
        return model(random_images(batch)).local.sort(1).values

    first = local(0)
    assert torch.equal(first, local(0)) and not torch.equal(first, local(1))
    assert len({tuple(row) for row in first.tolist()}) > 1
    assert first.min() >= 0 and first.max() < 24 and first.shape == (4, 6)
    model.eval()
    fixed = local(0)
    assert torch.equal(fixed[:1].expand(4, -1), fixed) and torch.equal(fixed, local(1))
    assert torch.equal(fixed[:2], local(2, batch=2))  # whatever else is in the batch
    torch.testing.assert_close(model.predict(random_images(4))[:1], model.predict(random_images(1)))


def test_with_one_block_the_choice_of_local_tokens_changes_no_prediction_and_with_two_it_does():
    """CLS attends to all tokens, and queries do not see each other."""
    for number, differs in ((1, False), (2, True)):
        seen = {}
        for local_queries in LOCAL_QUERIES:
            model = tiny(local_queries=local_queries, glca_blocks=number).eval()
            seen[local_queries] = model(random_images(3)).features["glca"]
        for local_queries in ("random", "penultimate"):
            assert ((seen[local_queries] - seen["rollout"]).abs().max() > 1e-4) == differs
        for local_queries in ("local_only", "cross"):
            assert (seen[local_queries] - seen["rollout"]).abs().max() > 1e-4
        assert (seen["local_only"] - seen["cross"]).abs().max() > 1e-4


def test_defaults_are_todays_model():
    today, given = tiny(), tiny(local_queries="rollout", glca_blocks=1)
    assert today.state_dict().keys() == given.state_dict().keys()
    assert not [name for name in today.state_dict() if "more_glca" in name]
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in today.state_dict().items())


def test_blocks_start_as_copies_of_the_last_ones_in_their_order():
    copied = tiny(glca_init="last_block", glca_blocks=2)
    for ours, theirs in zip(copied.glca_blocks, copied.backbone.blocks[-2:], strict=True):
        for name, parameter in ours.block.named_parameters():
            assert torch.equal(parameter, theirs.get_parameter(name)) and parameter is not theirs.get_parameter(name)
    fresh = tiny(glca_init="random", glca_blocks=4)  # more than the backbone has
    weights = [block.block.mlp.fc1.weight for block in fresh.glca_blocks]
    assert len(weights) == 4 and not torch.equal(weights[0], weights[1])
    for number in (0, 4):
        with pytest.raises(InputError, match="glca_blocks: expected 1 to 3"):
            tiny(glca_init="last_block", glca_blocks=number)
    with pytest.raises(InputError, match="at least two blocks"):
        tiny(local_queries="penultimate", depth=1)
    with pytest.raises(InputError, match="unknown local_queries 'all'"):
        tiny(local_queries="all")


@pytest.mark.parametrize("local_queries", LOCAL_QUERIES)
def test_every_block_learns(local_queries):
    model = tiny("full", local_queries=local_queries, glca_blocks=2, drop_path_rate=0.1).train()
    torch.manual_seed(0)
    model(random_images(8)).logits["glca"].square().sum().backward()
    for block in model.glca_blocks:
        assert all(parameter.grad.abs().sum() > 0 for parameter in block.parameters())


@pytest.mark.parametrize("local_queries", LOCAL_QUERIES)
def test_compiled_blocks_change_nothing_and_are_compiled_once(local_queries):
    model = tiny("full", local_queries=local_queries, glca_blocks=3, drop_path_rate=0.4)

    def epoch():
        seen = []
        for batch in (4, 4, 3):
            torch.manual_seed(3)
            model.train().zero_grad()
            out = model(random_images(batch))
            sum(logits.square().sum() for logits in out.logits.values()).backward()
            seen += [*out.logits.values(), *(parameter.grad.clone() for parameter in model.parameters())]
        seen.append(model.eval().predict(random_images(3)))
        return seen

    assert_compiled_blocks_compute_the_same(model, epoch, tolerance=1e-3)


def test_settings_reach_the_model_and_unused_ones_are_warned_about():
    config = parse_config(["--local_queries=cross", "--glca_blocks=2"])
    model = build_model(config, 5, pretrained=False)
    assert (model.local_queries, len(model.glca_blocks)) == ("cross", 2)
    assert settings_without_effect(config) == []
    for flags, named in (
        (["--ablation=sa_only", "--glca_blocks=2"], "glca_blocks: ablation sa_only has no GLCA"),
        (["--ablation=sa_pwca", "--local_queries=random"], "local_queries: ablation sa_pwca has no GLCA"),
        (["--ablation=sa_only", "--local_ratio=0.3"], "local_ratio: ablation sa_only has no GLCA"),
    ):
        (line,) = settings_without_effect(parse_config(flags))
        assert line.startswith(f"no effect: {named}")
    for flags, named in (
        (["--local_queries=random"], "local_queries: with glca_blocks 1"),
        (["--local_ratio=0.3"], "local_ratio: with glca_blocks 1"),
    ):
        (line,) = choice_of_local_tokens_without_effect(parse_config(flags))
        assert line.startswith(f"no effect: {named}") and settings_without_effect(parse_config(flags)) == []
    for flags in (["--local_queries=random", "--glca_blocks=2"], ["--local_queries=local_only", "--local_ratio=0.3"]):
        assert choice_of_local_tokens_without_effect(parse_config(flags)) == []
    for wrong in ("--glca_blocks=0", "--local_queries=all"):
        with pytest.raises(InputError):
            parse_config([wrong])


@pytest.mark.parametrize("local_queries", LOCAL_QUERIES)
@pytest.mark.parametrize("number", [1, 2])
def test_predictions_need_local_tokens_only_where_they_matter(local_queries, number, monkeypatch):
    """`predict` and `embed` give what `forward` gives, and look for local tokens only if these change it."""
    model = tiny(local_queries=local_queries, glca_blocks=number).double().eval()
    out = model(random_images(3).double())
    scored = []
    original = branch_heads.score_patches
    monkeypatch.setattr(branch_heads, "score_patches", lambda *given: scored.append(1) or original(*given))
    mean = (out.logits["sa"].softmax(-1) + out.logits["glca"].softmax(-1)) / 2
    torch.testing.assert_close(model.predict(random_images(3).double()).double(), mean, atol=1e-6, rtol=0)
    features = torch.cat([out.features["sa"], out.features["glca"]], dim=1)
    torch.testing.assert_close(model.embed(random_images(3).double()), features)
    assert bool(scored) == (number > 1 or local_queries in ("local_only", "cross"))
