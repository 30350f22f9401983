"""Blocks compiled by torch.compile: the same numbers, few graphs."""

import shutil

import pytest
import torch

from dual_cross_attention.models import ABLATIONS
from tests.helpers import assert_compiled_blocks_compute_the_same, random_images, tiny_model


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_change_nothing_and_are_compiled_once(ablation, checkpointing):
    """Outputs and gradients, with drop path, of two batch sizes; after one epoch of both, nothing is compiled again."""
    model = tiny_model(ablation, drop_path_rate=0.4, sharpness=3.0).train()
    model.set_grad_checkpointing(checkpointing)

    def epoch():
        seen = []
        for batch in (4, 4, 3):
            torch.manual_seed(3)
            model.train().zero_grad()
            out = model(random_images(batch))
            sum(logits.square().sum() for logits in out.logits.values()).backward()
            seen += [*out.logits.values(), *(parameter.grad.clone() for parameter in model.parameters())]
        for batch in (3, 1):
            seen.append(model.eval().predict(random_images(batch)))
            seen.append(model.predict(random_images(batch), branch="sa"))
        return seen

    assert_compiled_blocks_compute_the_same(model, epoch, tolerance=1e-5)


def test_blocks_that_differ_in_their_drop_rate_share_a_graph():
    torch.compiler.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    model = tiny_model("full", depth=6, drop_path_rate=0.5).train()
    model.compile_blocks(backend=count)
    model(random_images(3))
    assert len(graphs) == 4  # the first block has no drop path; the four after it; the last; GLCA's


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_inductor_compiles_the_blocks():
    torch.compiler.reset()
    model = tiny_model("full", drop_path_rate=0.4, sharpness=3.0).train()

    def gradients():
        torch.manual_seed(3)
        model.zero_grad()
        sum(logits.square().sum() for logits in model(random_images(4)).logits.values()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.compile_blocks()
    torch.testing.assert_close(gradients(), plain, atol=1e-4, rtol=1e-4)
