"""The README says what is so."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import torch
from classifiers import LogitsOnly, resnet
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from support import Exported

from levit_export.cli import cli
from levit_export.core.quiet import quiet
from levit_export.models.zoo import bundled_weights

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def commands(page: Path) -> list[str]:
    """What a page shows after a prompt, without the remarks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [ln.removeprefix("$ ").split("#")[0].strip() for ln in lines if ln.startswith("$ ")]


def programs(page: Path) -> list[str]:
    """The Python that a page shows."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```$", text, flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in blocks]


COMMANDS = commands(ROOT / "README.md")
OURS = sorted({each for page in PAGES for each in commands(page) if each.startswith("levit-exp")})
PROGRAMS = {
    f"{page.relative_to(ROOT)}-{index}": block
    for page in PAGES
    for index, block in enumerate(programs(page))
}
EXPORTS = [each for each in COMMANDS if each.startswith("levit-export -")]
ON_AN_EXPORT = [
    each for each in COMMANDS if re.match(r"levit-export (check|drift|evaluate) exported/", each)
]


def test_there_are_commands() -> None:
    """The README shows how to export and check, and names the command that tests, once."""
    assert "scripts/levit-export --format all" in COMMANDS
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("`scripts/test`") == 1
    assert (ROOT / "scripts" / "test").is_file()
    assert len(EXPORTS) > 5
    assert {each.split()[1] for each in ON_AN_EXPORT} == {"check", "drift", "evaluate"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_can_be_given(command: str) -> None:
    """Every command is a script of this repository, or parses with its options."""
    program, *arguments = shlex.split(command)
    assert program in ("levit-export", "scripts/levit-export")
    # Unknown options are refused before help is shown.
    result = CliRunner().invoke(cli, [*arguments, "--help"], prog_name="levit-export")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", OURS)
def test_a_command_of_the_documentation_can_be_given(command: str) -> None:
    """Every command of every page parses with its options."""
    given = [*shlex.split(command)[1:], "--help"]
    result = CliRunner().invoke(cli, given, prog_name="levit-export")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", EXPORTS)
def test_an_export_of_the_readme_is_accepted(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With files of those names beside it, every export of the README gets through a dry run."""
    monkeypatch.chdir(tmp_path)
    weights = bundled_weights()
    tensors = load_file(weights)
    torch.save(tensors, "levit_256.pth")
    Path("my.safetensors").write_bytes(weights.read_bytes())
    Path("classes.txt").write_text("".join(f"digit {i}\n" for i in range(10)))
    for folder in ("photos", "val"):
        Path(folder).mkdir()
        Image.new("RGB", (96, 96), "red").save(Path(folder, "one.png"))
    if "saved_pretrained/" in command:
        Path("saved_pretrained").mkdir()
        save_file(tensors, "saved_pretrained/model.safetensors")
    given = [*shlex.split(command)[1:], "--dry-run"]
    result = CliRunner().invoke(cli, given, prog_name="levit-export")
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def beside_an_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, images, and the export of those weights as the README calls it."""
    folder = tmp_path_factory.mktemp("readme")
    tensors = load_file(bundled_weights())
    tensors["head.l.weight"] *= 1.01  # not the bundled model, of which more is known
    torch.save(tensors, folder / "levit_256.pth")
    (folder / "val").mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (96, 96), color).save(folder / "val" / f"{color}.png")
    output = folder / "exported" / "levit_256"
    given = ["-c", str(folder / "levit_256.pth"), "-f", "onnx", "--no-bench", "-o", str(output)]
    result = CliRunner().invoke(cli, ["export", *given])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("command", ON_AN_EXPORT)
def test_a_command_on_an_export_does_what_the_readme_says(
    command: str, beside_an_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every check, drift and evaluation of the README runs on an export of one's own weights."""
    monkeypatch.chdir(beside_an_export)
    given = shlex.split(command)[1:]
    result = CliRunner().invoke(cli, given, prog_name="levit-export")
    assert result.exit_code == 0, result.output


def test_the_tree_of_the_readme(exported: Exported) -> None:
    """What the README draws of an export directory is there, whatever the model is called."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("exported/levit_256/") + 1
    drawn = [line.split()[0] for line in lines[start : lines.index("```", start)]]
    names = [name.replace("levit_256", "levit_digits").rstrip("/") for name in drawn]
    there = [name for name in names if not name.startswith(("openvino", "coreml"))]
    assert len(there) > 3
    for name in there:
        assert (exported.folder / name).exists(), name


def test_every_page_is_in_the_index() -> None:
    """docs/README.md leads to every page beside it."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of the documentation names a file that exists."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_python_of_the_documentation_parses(name: str) -> None:
    """Every block of Python in every page is Python."""
    ast.parse(PROGRAMS[name])


def test_every_block_of_python_is_looked_at() -> None:
    """No page begins a block of Python that the tests of such blocks do not see."""
    begun = sum(page.read_text(encoding="utf-8").count("```python") for page in PAGES)
    assert begun == len(PROGRAMS) > 3


@pytest.mark.parametrize(("precision", "unit"), [("FLOAT16", 2.0**-11), ("FLOAT32", 2.0**-24)])
def test_the_worked_example_of_the_evaluator(
    precision: str,
    unit: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The page's program prints an error of the size that the page says, in both precisions.

    A few thousandths are some 8 unit roundoffs of float16, 1e-6 is some 16 of float32.
    """
    pytest.importorskip("coremltools")
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in PROGRAMS.values() if "MyNetwork()" in block)
    assert "FLOAT16" in example
    printed: list[float] = []
    names = {"MyNetwork": lambda: LogitsOnly(resnet()), "print": printed.append}
    torch.manual_seed(0)
    with quiet("coremltools"):
        exec(example.replace("FLOAT16", precision), names)  # noqa: S102 - it is ours
    (error,) = printed
    assert 0 < error < 16 * unit
