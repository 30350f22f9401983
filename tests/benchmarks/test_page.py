"""The benchmark of the page measures what it prints."""

import json

import pytest

pytest.importorskip("gradio", reason="the page needs the extra [web]")

from benchmarks.page import main
from tests.web.conftest import photo


@pytest.mark.slow  # three processes that import PyTorch
def test_a_row_per_command_and_a_memory_per_upload(make_model, tmp_path):
    photo(0).save(tmp_path / "a.png")
    arguments = [make_model(), tmp_path / "a.png", "--uploads", 2, "--device", "cpu", "--json", tmp_path / "page.json"]
    assert main([f"{each}" for each in arguments]) == 0
    rows = json.loads((tmp_path / "page.json").read_text())["rows"]
    assert {"dcal predict", "dcal explain", "page: to its address", "page: first answer"} < rows.keys()
    assert rows["page: after 2 uploads"]["MiB"] > 50
