"""Each limit of the comparison refuses on its own, whatever it is that differs. No file is exported here."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from dual_cross_attention import InputError
from dual_cross_attention.export.gate import Comparison, check_answers, compare
from dual_cross_attention.export.graph import InferenceGraph
from dual_cross_attention.export.sample_images import synthetic_images
from dual_cross_attention.inference.model_files import read_model
from dual_cross_attention.inference.onnx_files import check_self_contained

BRANCHES = ["sa", "glca"]


class Changed:
    """What PyTorch answers, with a change."""

    def __init__(self, saved, change):
        self.graph, self.change = InferenceGraph(saved, BRANCHES).eval(), change

    @torch.no_grad()
    def run(self, images):
        found = {name: out.numpy() for name, out in zip(self.graph.output_names, self.graph(images), strict=True)}
        self.change(found)
        return found


def compared(saved, change):
    images = synthetic_images(saved.config.task, 8)
    return compare(saved, BRANCHES, replace(saved, model=Changed(saved, change)), images)


@pytest.mark.parametrize(
    ("field", "at_the_limit", "beyond", "token"),
    [
        ("log_probability", 1e-4, 1.1e-4, "log p"),
        ("small_probability", 1e-7, 1.1e-7, "below"),
        ("embedding", 1e-4, 1.1e-4, "embedding"),
        ("other_answers", 0, 1, "top-1"),
        ("other_local", 0, 1, "local"),
        ("labels", True, False, "labels"),
    ],
)
def test_one_number_beyond_its_limit(field, at_the_limit, beyond, token):
    assert not Comparison(**{field: at_the_limit}).failures()
    (failure,) = Comparison(**{field: beyond}).failures()
    assert token in failure
    with pytest.raises(InputError, match="no file"):
        Comparison(**{field: beyond}).check()


def first_row_for_all(found):
    for values in found.values():
        values[:] = values[:1]


def rows_in_another_order(found):
    for values in found.values():
        values[:] = values[::-1].copy()


def add(name, value):
    def change(found):
        found[name][-1, 0] += value

    return change


def another_local_token(found):
    unused = set(range(found["rollout"].shape[1])) - set(found["local"][-1].tolist())
    found["local"][-1, 0] = min(unused, key=lambda token: found["rollout"][-1, token])


def two_classes_exchanged(found):
    for name in ("probabilities", "logits_sa", "logits_glca"):
        found[name][:, :2] = found[name][:, 1::-1].copy()


def not_a_number(found):
    found["feature_glca"][-1, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "token"),
    [
        (first_row_for_all, "log p"),
        (rows_in_another_order, "log p"),
        (two_classes_exchanged, "log p"),
        (add("logits_sa", 1e-2), "log p"),
        (add("logits_glca", 1e-2), "log p"),
        (add("probabilities", 1e-2), "log p"),
        (add("embedding", 1e-3), "embedding"),
        (add("feature_sa", 0.1), "embedding"),
        (another_local_token, "local"),
        (not_a_number, "embedding"),
    ],
)
def test_a_changed_answer(change, token, make_model):
    failures = compared(read_model(make_model()), change).failures()
    assert any(token in failure for failure in failures), failures


def test_a_changed_embedding_of_re_identification(make_model):
    """It has no probabilities that would differ, too."""
    saved = read_model(make_model("reid"))
    (failure,) = compared(saved, add("embedding", 1e-3)).failures()
    assert "embedding" in failure


def test_small_probabilities_are_compared_by_difference(make_model):
    """A class of p = 1e-9 may be 50 % more probable, but not have p = 1e-6."""
    saved = read_model(make_model())
    with torch.no_grad():
        for head in (saved.model.backbone.head, saved.model.glca_head):
            head.weight.zero_()
            head.bias.copy_(torch.linspace(0, -24, len(head.bias)))

    def add_to_the_last(value):
        def change(found):
            found["probabilities"][:, -1] += value

        return change

    assert not compared(saved, add_to_the_last(2e-11)).failures()
    (failure,) = compared(saved, add_to_the_last(5e-7)).failures()
    assert "below" in failure


def test_the_untouched_answers_pass(make_model):
    result = compared(read_model(make_model()), lambda found: None)
    assert not result.failures() and result.images == 8


def constant_batch(found):
    for name in found:
        found[name] = found[name][:1].repeat(3, axis=0)


@pytest.mark.parametrize("change", [constant_batch, not_a_number])
def test_files_of_any_dtype_have_a_finite_row_per_image(change, make_model):
    saved = read_model(make_model())
    check_answers(saved, replace(saved, model=Changed(saved, lambda found: None)))
    with pytest.raises(InputError, match="rows of finite"):
        check_answers(saved, replace(saved, model=Changed(saved, change)))


def test_files_of_any_dtype_have_the_labels_of_the_model(make_model):
    saved = read_model(make_model())
    other = replace(saved, model=Changed(saved, lambda found: None), classes=saved.classes[::-1])
    with pytest.raises(InputError, match="labels"):
        check_answers(saved, other)


def test_operators_of_other_libraries():
    empty = onnx.helper.make_graph([], "empty", [], [])
    own, other = (
        onnx.helper.make_model(empty, opset_imports=[onnx.helper.make_opsetid(domain, 1)])
        for domain in ("com.microsoft", "someone.else")
    )
    check_self_contained(own, "x")
    with pytest.raises(InputError, match=r"someone\.else"):
        check_self_contained(other, "x")
