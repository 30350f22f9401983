"""What the documentation shows can be typed: flags exist, scripts and job descriptions are well-formed."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from dual_cross_attention.configs.parse import parse_config

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "clusters.md", ROOT / "docs" / "results.md")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def training_commands():
    """What follows train.py in every block of a shell, as words."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                _, found, flags = line.partition("train.py ")
                if found:
                    words = shlex.split(flags.replace("…", ""), comments=True)
                    yield pytest.param(words[: words.index("&")] if "&" in words else words, id=f"{page.name}: {line}")
    for block in blocks(ROOT / "docs" / "clusters.md", "yaml"):
        container = yaml.safe_load(block)["spec"]["template"]["spec"]["containers"][0]
        assert container["command"][-1] == "train.py"
        yield pytest.param(container["args"], id="Kubernetes")


@pytest.mark.parametrize("words", list(training_commands()))
def test_commands_can_be_typed(words):
    parse_config(words)


def test_scripts_are_well_formed():
    for page in PAGES:
        for block in blocks(page, "bash"):
            checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, (block, checked.stderr)
