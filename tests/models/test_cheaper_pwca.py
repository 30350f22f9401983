"""PWCA in the last blocks only, and with a part of the distractor's tokens, against explicit attention."""

import pytest
import torch
from torch.nn import functional as F

from benchmarks.measure import count_flops
from dual_cross_attention import InputError
from dual_cross_attention.attention import sample_distractor_tokens
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.configs.without_effect import settings_without_effect
from dual_cross_attention.inference.model_files import build_model
from dual_cross_attention.models import encoding
from dual_cross_attention.tasks import BranchSchedule
from tests.helpers import any_says, assert_compiled_blocks_compute_the_same, random_images, tiny_model

PREFIX, PATCHES = 1, 24


def tiny(ablation="full", **kwargs):
    return tiny_model(ablation, sharpness=4, **{"depth": 4, **kwargs}).train()


def explicit(model, inputs, distractors, tokens_of_distractors, last_blocks):
    """Logits of SA and PWCA, one target and one head at a time, both streams through all blocks."""
    vit = model.backbone
    streams = {"sa": vit._pos_embed(vit.patch_embed(inputs))}
    streams["pwca"] = streams["sa"]
    for place, block in enumerate(vit.blocks):
        heads = {
            name: block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
            for name, tokens in streams.items()
        }
        other = heads["sa" if model.clean_distractors else "pwca"]
        for name, (query, key, value) in heads.items():
            rows = []
            for i in range(len(inputs)):
                of_heads = []
                for head in range(3):
                    keys, values = key[i, head], value[i, head]
                    if name == "pwca" and place >= len(vit.blocks) - last_blocks:
                        there = tokens_of_distractors[i]
                        keys = torch.cat([keys, other[1][distractors[i], head][there]])
                        values = torch.cat([values, other[2][distractors[i], head][there]])
                    of_heads.append((query[i, head] @ keys.T / 4).softmax(-1) @ values)
                rows.append(torch.cat(of_heads, dim=-1))
            tokens = streams[name] + block.attn.proj(torch.stack(rows))
            streams[name] = tokens + block.mlp(block.norm2(tokens))
    return {name: vit.head(vit.norm(tokens)[:, 0]) for name, tokens in streams.items()}


@pytest.mark.parametrize("stream", ["pwca", "sa"])
@pytest.mark.parametrize("last_blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_outputs_and_gradients_are_those_of_explicit_attention(stream, last_blocks, share, monkeypatch):
    model = tiny("sa_pwca", distractor_stream=stream, pwca_blocks=last_blocks, distractor_tokens=share).double()
    sampled = []

    def keep(*arguments):
        sampled.append(sample_distractor_tokens(*arguments))
        return sampled[-1]

    monkeypatch.setattr(encoding, "sample_distractor_tokens", keep)
    inputs, distractors = random_images(4).double(), torch.tensor([2, 0, 3, 1])

    def gradients(logits):
        model.zero_grad()
        (F.cross_entropy(logits["sa"], distractors) + 0.7 * F.cross_entropy(logits["pwca"], distractors)).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    ours = model(inputs, distractors).logits
    (tokens,) = sampled
    if share == 1:
        assert tokens is None
        tokens = torch.arange(PREFIX + PATCHES).expand(4, -1)
    expected = explicit(model, inputs, distractors, tokens, last_blocks)
    for branch in ("sa", "pwca"):
        torch.testing.assert_close(ours[branch], expected[branch])
    assert (ours["sa"] - ours["pwca"]).abs().max() > 1e-4
    ours, expected = gradients(ours), gradients(expected)
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name], atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_blocks_and_all_tokens_are_todays_to_the_bit(checkpointing):
    seen = []
    for options in ({}, {"pwca_blocks": 4, "distractor_tokens": 1.0}):
        model = tiny(drop_path_rate=0.3, **options)
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        out = model(random_images(4))
        sum(logits.square().sum() for logits in out.logits.values()).backward()
        seen.append([*out.logits.values(), *(parameter.grad for parameter in model.parameters())])
    for today, ours in zip(*seen, strict=True):
        assert torch.equal(today, ours)


def test_the_sampled_tokens():
    torch.manual_seed(0)
    sampled = sample_distractor_tokens(500, 2, 10, 0.3)
    assert sampled.shape == (500, 2 + 3)
    assert (sampled[:, :2] == torch.tensor([0, 1])).all()  # the prefix is always there
    patches = sampled[:, 2:]
    assert patches.min() == 2 and patches.max() == 11
    assert all(len(set(row)) == 3 for row in patches.tolist())
    counts = torch.bincount(patches.flatten(), minlength=12)[2:]
    assert (counts - 150).abs().max() < 50  # every patch as often: 150 are expected, their deviation is 10
    assert len({tuple(sorted(row)) for row in patches.tolist()}) > 60  # every target has its own
    torch.manual_seed(0)
    assert torch.equal(sampled, sample_distractor_tokens(500, 2, 10, 0.3))  # from the seeded generator
    assert not torch.equal(sampled, sample_distractor_tokens(500, 2, 10, 0.3))  # anew in every step
    assert sample_distractor_tokens(4, 1, 10, 0.0).tolist() == [[0]] * 4
    state = torch.get_rng_state()
    assert sample_distractor_tokens(4, 1, 10, 1.0) is None and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("last_blocks", [1, 2, 4])
def test_shared_blocks_are_computed_once(last_blocks):
    rows = []
    model = tiny("sa_pwca", pwca_blocks=last_blocks)
    for block in model.backbone.blocks:
        block.mlp.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    model(random_images(4))
    # The last block runs its streams one by one.
    assert rows == [4] * (4 - last_blocks) + [8] * (last_blocks - 1) + [4, 4]


def test_they_cost_less():
    def flops(ablation="sa_pwca", **options):
        model = tiny(ablation, **options)
        with torch.no_grad():
            return count_flops(lambda: model(random_images(4)))

    assert flops(ablation="sa_only") < flops(pwca_blocks=1) < flops(pwca_blocks=2) < flops(pwca_blocks=4) == flops()
    assert flops(distractor_tokens=0.0) < flops(distractor_tokens=0.25) < flops()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("options", [{"pwca_blocks": 2}, {"pwca_blocks": 1, "distractor_tokens": 0.25}], ids=str)
def test_compiled_blocks_change_nothing_and_are_compiled_once(options, checkpointing):
    """Also where PWCA and GLCA come and go from step to step."""
    model = tiny(drop_path_rate=0.4, **options)
    model.set_grad_checkpointing(checkpointing)

    def epoch():
        seen = []
        for branches in (["sa"], ["sa", "glca"], ["sa", "glca", "pwca"], ["sa", "pwca"]):
            for batch in (4, 4, 3):
                torch.manual_seed(3)
                model.train().zero_grad()
                out = model(random_images(batch), None, branches)
                sum(logits.square().sum() for logits in out.logits.values()).backward()
                seen += [*out.logits.values()]
                seen += [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        seen.append(model.eval().predict(random_images(3)))
        return seen

    assert_compiled_blocks_compute_the_same(model, epoch, tolerance=1e-4)


@pytest.mark.parametrize(("start", "every", "steps"), [(0, 1, 8), (0, 3, 8), (0.25, 3, 8), (0.3, 2, 9)])
def test_every_kth_step_from_the_start_on(start, every, steps):
    schedule = BranchSchedule(pwca_start=start, pwca_every=every)
    on = [step for step in range(1, steps + 1) if "pwca" in schedule.scales(("sa", "glca", "pwca"), step, steps)]
    first = int(start * steps + 1e-9) + 1
    assert on == list(range(first, steps + 1, every))
    assert all("glca" in schedule.scales(("sa", "glca"), step, steps) for step in range(1, steps + 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pwca_blocks": 5}, "pwca_blocks: .* from 1 to 4; got 5"),
        ({"pwca_blocks": 0}, "pwca_blocks"),
        ({"distractor_tokens": 1.1}, "distractor_tokens: expected a share"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        tiny(**arguments)


def test_settings_reach_model_and_schedule():
    flags = ["--pwca_blocks=3", "--distractor_tokens=0.5", "--pwca_every=4"]
    config = parse_config(flags)
    model = build_model(config, 5, pretrained=False)
    assert (model.pwca_blocks, model.distractor_tokens) == (3, 0.5)
    for wrong in ("--pwca_blocks=0", "--distractor_tokens=2", "--pwca_every=0"):
        with pytest.raises(InputError, match=wrong[2:].split("=")[0]):
            parse_config([wrong])
    assert settings_without_effect(config) == []


def test_settings_without_effect_are_warned_about(dcal, small, tmp_path):
    flags = ["--ablation=sa_only", "--pwca_every=2", "--glca_init=random", "--pwca_start=0.5"]
    lines = settings_without_effect(parse_config(flags))
    assert len(lines) == 2 and "glca_init" in lines[0] and "pwca_every" in lines[1] and "pwca_start" not in lines[1]
    assert settings_without_effect(parse_config(["--ablation=sa_glca", "--glca_init=random"])) == []
    assert settings_without_effect(parse_config(["--config=cub_vit_base", "--ablation=sa_only"])) == []
    outcome = dcal(
        "train", *small, "--ablation=sa_glca", "--pwca_blocks=1", "--epochs=1", "--output_dir", tmp_path / "r"
    )
    assert outcome.status == 0 and any_says(outcome.out.splitlines(), "no effect: pwca_blocks", "sa_glca")
