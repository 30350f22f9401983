"""Documentation: command lines parse, named files and links exist, generated tables are complete."""

import importlib.util
import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from dual_cross_attention.configs import CONFIGS
from dual_cross_attention.configs.parse import parse_config
from dual_cross_attention.configs.recipes import recipe_names

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md")))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def command_lines():
    """Every line with `train.py` or `dcal` in a shell block or in inline code, as (page, program, words)."""
    for page in PAGES:
        shell = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
        inline = re.findall(r"`((?:python train\.py|dcal [a-z-]+)[^`]*)`", page.read_text())
        for line in shell + inline:
            words = shlex.split(line.replace("…", ""), comments=True)
            for place, word in enumerate(words):
                if word in ("train.py", "dcal"):
                    rest = words[place + 1 :]
                    yield page.name, word, rest[: rest.index("&")] if "&" in rest else rest
                    break


def training_commands():
    for page, program, words in command_lines():
        if program == "dcal" and words[:1] == ["train"]:
            words = words[1:]
        elif program == "dcal":
            continue
        yield pytest.param([word for word in words if word != "--help"], id=f"{page}: {' '.join(words)}")
    for block in blocks(DOCS / "distributed.md", "yaml"):
        container = yaml.safe_load(block)["spec"]["template"]["spec"]["containers"][0]
        assert container["command"][-1] == "train.py"
        yield pytest.param(container["args"], id="Kubernetes")


def other_commands():
    for page, program, words in command_lines():
        if program == "dcal" and words[0] not in ("COMMAND", "train"):
            yield pytest.param(words, id=f"{page}: dcal {' '.join(words)}")


@pytest.mark.parametrize("words", list(training_commands()))
def test_training_commands_parse(words):
    parse_config(words)


@pytest.mark.parametrize("words", list(other_commands()))
def test_other_commands_have_these_flags(dcal, words):
    nested = 2 if words[0] == "index" else 1
    command, rest = words[:nested], words[nested:]
    shown = dcal(*command, "--help")
    assert shown.status == 0, shown.err
    known = set(re.findall(r"--[\w-]+", shown.out))
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known


def test_command_lines_are_found():
    """The tests above would pass on nothing."""
    assert len(list(training_commands())) > 15
    assert {words.values[0][0] for words in other_commands()} >= {"eval", "check-data", "shard", "predict"}


def test_scripts_are_well_formed():
    for page in PAGES:
        for block in blocks(page, "bash"):
            checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, (block, checked.stderr)


def test_python_examples_compile():
    examples = [(page.name, block) for page in PAGES for block in blocks(page, "python")]
    assert len(examples) >= 4
    for name, block in examples:
        compile(block, name, "exec")


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "docs"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    """MkDocs checks the pages in docs/, with anchors; README.md and the view of the repository are checked here."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["architecture.md", "decisions.md", "contributing.md", "security.md", "results.md"])
def test_named_files_exist(name):
    """Architecture has to follow the code."""
    folders = (ROOT / folder for folder in ("dual_cross_attention", "tests", "benchmarks", "docs"))
    existing = [f"/{path.relative_to(ROOT)}" for folder in folders for path in (folder, *folder.rglob("*"))]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", (DOCS / name).read_text(), flags=re.DOTALL))
    of_the_project = r"[\w./]+\.(py|md)|(dual_cross_attention|tests|docs|benchmarks)/[\w/]*"
    named = {span for span in spans if re.fullmatch(of_the_project, span)}
    if name == "architecture.md":
        named |= {span for span in spans if re.fullmatch(r"[\w/]+/", span)}
    assert named
    for path in named - {"CHANGELOG.md"}:
        assert any(each.endswith(f"/{path.rstrip('/')}") for each in existing), path


def test_every_folder_of_the_package_is_in_the_architecture():
    text = (DOCS / "architecture.md").read_text()
    for folder in (ROOT / "dual_cross_attention").iterdir():
        if (folder / "__init__.py").is_file():
            assert f"`{folder.name}/`" in text, folder.name


@pytest.fixture(scope="module")
def settings_tables():
    place = DOCS / "_hooks" / "settings_tables.py"
    spec = importlib.util.spec_from_file_location(place.stem, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakePage:
    """As much of MkDocs' page as the hook reads."""

    def __init__(self, name):
        self.file = type("File", (), {"src_uri": name})


def test_configuration_page_has_every_setting(settings_tables):
    source = (DOCS / "configuration.md").read_text()
    page = settings_tables.on_page_markdown(source, page=FakePage("configuration.md"))
    rows = [line for line in page.splitlines() if line.startswith("| `--")]
    names = {field.name for task in CONFIGS.values() for each in task.values() for field in fields(each)}
    assert {row.split("`")[1] for row in rows} == {f"--{name}" for name in names - {"format_version", "task"}}
    assert len(rows) == len(names) - 2
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {7}  # the same number of cells everywhere
    weight_decay = next(row for row in rows if "`--weight_decay`" in row)
    assert "| `0.05` | `0.0001` |" in weight_decay  # the paper's, of fgvc and reid
    assert next(row for row in rows if "`--erasing`" in row).count("| – |") == 1  # fgvc has none
    for recipe in recipe_names():
        assert f"| `{recipe}` |" in page
    assert "| `reid` | `veri776` | `img_size` `256" in page
    assert settings_tables.on_page_markdown(source, page=FakePage("index.md")) == source


def test_configuration_page_without_its_markers_is_refused(settings_tables):
    with pytest.raises(ValueError, match="settings"):
        settings_tables.on_page_markdown("# Configuration", page=FakePage("configuration.md"))
