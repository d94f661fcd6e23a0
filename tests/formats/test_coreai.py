"""The Core AI target: what is in an asset, what Apple's runtime makes of it, what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import subjects
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import DRAWS, assert_computes, network_of
from mutations import find_weights, vouch
from safetensors.torch import save_file
from support import Cli, needs_core_ai

from levit_export.checks import reference, weights
from levit_export.core.errors import (
    ArtifactError,
    LevitExportError,
    UsageError,
)
from levit_export.core.network import KINDS, Network
from levit_export.core.precisions import PRECISIONS
from levit_export.core.values import (
    Artifact,
    Embedded,
    ExportOptions,
    RunOptions,
)
from levit_export.formats import TARGETS, known_targets
from levit_export.formats.coreai import program
from levit_export.formats.coreai.target import CoreaiTarget
from levit_export.formats.coreai.write import WRITERS
from levit_export.models.interpreter import evaluate
from levit_export.models.preparation import prepare
from levit_export.workflows.export_plan import ExportRequest, plan

TARGET = CoreaiTarget()
RUN = RunOptions()
SOFTMAX = "stage1_block0_attention_softmax"


@pytest.fixture
def plain() -> Artifact:
    """The small model in float32; do not change it."""
    return subjects.tiny_artifact("coreai", "fp32")


@pytest.fixture
def copied(plain: Artifact, tmp_path: Path) -> Artifact:
    """A copy that a test may damage."""
    return subjects.copy(plain, tmp_path)


def image() -> dict[str, np.ndarray]:
    """A seeded input of the small model."""
    drawn = np.random.default_rng(0).standard_normal((1, 3, 64, 64))
    return {"input": drawn.astype(np.float32)}


# --- where it is, and where not -------------------------------------------------------------


def test_all_does_not_mean_it() -> None:
    """A format that stands on a pre-release is known by name and not among those of ``all``."""
    assert "coreai" in {kind.name for kind in known_targets()}
    assert "coreai" not in {kind.name for kind in TARGETS}


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is missing, the reason says which and the remedy names the extra."""
    monkeypatch.setitem(sys.modules, "coreai", None)
    for found in (TARGET.can_export(), TARGET.can_run()):
        assert not found.ok
        assert "coreai-core is not installed" in found.reason
        assert "levit-export[coreai]" in found.fix
    with pytest.raises(UsageError, match="coreai-core is not installed"):
        TARGET.inspect(Path("m.aimodel"))


def test_an_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10, for which the package is not made, is refused with that reason."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 14))
    assert "Python 3.11" in TARGET.can_export().reason


def test_an_open_batch_is_refused() -> None:
    """A program is written for a fixed batch."""
    with pytest.raises(UsageError, match="fixed batch"):
        TARGET.refuse(ExportOptions(batch=None))


@needs_core_ai
def test_batchnorms_are_refused() -> None:
    """Core AI would fold a BatchNorm that was not fused, so that is refused at once."""
    request = ExportRequest(formats=("coreai",), skip=("fuse_batchnorm",))
    with pytest.raises(UsageError, match="fuse_batchnorm"):
        plan(request)


# --- what is in an asset --------------------------------------------------------------------


@needs_core_ai
def test_metadata(plain: Artifact) -> None:
    """An asset has an author and a description in its own fields."""
    written = json.loads((plain.path / program.METADATA).read_text("utf-8"))
    assert written["author"] == "levit-export"
    assert "image classifier" in written["description"]
    assert TARGET.inspect(plain.path).layout == "maps"


@needs_core_ai
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("layout", ["maps", "tokens"])
def test_a_file_passes_with_every_weight(precision: str, layout: str, tmp_path: Path) -> None:
    """In both layouts and precisions the answers and every weight are the checkpoint's."""
    model = prepare(subjects.tiny_checkpoint(), layout=layout)
    made = subjects.export(model, tmp_path / "m", "coreai", subjects.options_for(precision))
    report = subjects.judge(made, subjects.held_against(subjects.tiny_checkpoint(), model))
    assert (report.verdict, report.reason) == ("pass", "")
    assert report.weights is not None
    assert report.weights.tensors == len(model.fingerprints[precision])
    assert TARGET.inspect(made.path).precision == precision


@needs_core_ai
@pytest.mark.parametrize("skip", ["bake_attention_bias", "merge_heads"])
def test_without_a_pass(skip: str, tmp_path: Path) -> None:
    """A network that a pass was left out of passes too, with its own weights."""
    model = prepare(subjects.tiny_checkpoint(), skip=(skip,))
    made = subjects.export(model, tmp_path / "m", "coreai", subjects.options_for("fp32"))
    report = subjects.judge(made, subjects.held_against(subjects.tiny_checkpoint(), model))
    assert (report.verdict, report.reason) == ("pass", "")


@needs_core_ai
def test_raw_pixels_and_probabilities(tmp_path: Path) -> None:
    """Normalisation and softmax can be inside: bytes go in and probabilities come out."""
    embedded = Embedded(preprocessing=True, softmax=True)
    model = prepare(subjects.tiny_checkpoint(), embedded=embedded)
    options = subjects.options_for("fp32", embedded=embedded)
    made = subjects.export(model, tmp_path / "m", "coreai", options)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    (taken,) = model.signature.inputs
    with TARGET.open(made, RUN) as session:
        assert session.signature == model.signature
        found = session.run({taken.name: pixels})
    exact = evaluate(model.network, {taken.name: pixels}, dtype=torch.float64)
    assert found.keys() == exact.keys()
    for name, expected in exact.items():
        assert np.abs(found[name] - expected).max() <= 2.0**-16


@needs_core_ai
def test_blocks_that_stay_in_float32() -> None:
    """``--keep`` leaves a block in float32, and its weights are there as they are."""
    model, block = subjects.tiny("maps"), "stage2.block0.mlp"
    made = subjects.tiny_artifact("coreai", "fp16", block)
    kept = [n for op in model.network.ops_of([block]) for n in op.inputs]
    held = {array.tobytes() for array in TARGET.constants(made) if array.dtype == np.float32}
    tensors = [model.network.constants[n] for n in kept if n in model.network.constants]
    assert tensors
    assert all(array.tobytes() in held for array in tensors)
    assert TARGET.inspect(made.path).keep == (block,)


def run(network: Network, inputs: dict[str, np.ndarray], *, half: bool) -> dict[str, np.ndarray]:
    """What a network's saved program gives in Apple's runtime."""
    with TemporaryDirectory() as place:
        asset = Path(place, "m.aimodel")
        program.ask(
            program.export, asset, program.Wanted(network, "fp16" if half else "fp32", (), {}, {})
        )
        number = program.read(asset, program.opened, ())
        found = program.ask(program.answered, asset, number, inputs)
        program.ask(program.closed, number)
    return found


@needs_core_ai
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2, derandomize=True)
@given(data=st.data())
def test_each_kind(kind: str, data: st.DataObject) -> None:
    """A program computes what a kind of operator means, in float32 and in float16."""
    cases = [DRAWS[kind](data) for _ in range(4)]
    network, inputs = network_of(kind, cases, data.draw(st.integers(0, 1000)))
    assert_computes(run, network, inputs)


def test_every_kind_has_a_writer() -> None:
    """The table is complete."""
    assert set(WRITERS) == set(KINDS)


# --- what runs it ---------------------------------------------------------------------------


@needs_core_ai
def test_inner_values(plain: Artifact) -> None:
    """Every value of the network has its name in the program, and a tap gives its numbers."""
    network = subjects.tiny("maps").network
    names = {value.name for op in network.ops for value in op.outputs}
    assert names <= set(TARGET.values(plain))
    taps = [*network.taps.values()]
    with TARGET.open(plain, RUN, taps) as session:
        found = session.run(image())
        assert [spec.name for spec in session.signature.outputs] == ["logits"]
    exact = evaluate(network, image(), dtype=torch.float64, also=taps)
    assert found.keys() == exact.keys()
    for name, expected in exact.items():
        assert np.abs(found[name] - expected).max() <= 2.0**-15 * np.abs(expected).max(), name


# --- weights of 8, 6 and 4 bits ---------------------------------------------------------------

COMPRESSED = ("w8", "w6", "w4")
KEPT = "shrink1.attention"


@needs_core_ai
@pytest.mark.parametrize("precision", COMPRESSED)
def test_compressed_weights(precision: str) -> None:
    """The large layers are compressed and nothing else is, and the audit finds every tensor."""
    made, tensors = subjects.tiny_artifact("coreai", precision), subjects.tiny("maps").weights
    large = {n for n, w in tensors.items() if w.ndim > 1 and "bias" not in n and w.size > 2048}
    assert len(large) == 10
    assert large == {*tensors} & {*TARGET.values(made)}
    found = TARGET.inspect(made.path)
    assert found.precision == precision
    assert found.signature == subjects.tiny("maps").signature
    settled = weights.settled(tensors, TARGET.constants(made), PRECISIONS[precision].bits)
    audit = weights.audit(settled, TARGET.constants(made), precision)
    assert (audit.tensors, audit.missing, audit.strange) == (len(tensors), (), ())


@needs_core_ai
@pytest.mark.parametrize("precision", COMPRESSED)
def test_the_runtime_makes_the_same_weights(precision: str) -> None:
    """What is read of a compressed weight is, bit for bit, what Apple's runtime makes of it.

    On a grid each number is the nearest of its channel, but for the roundings of the weight, the
    step and their product; of a palette it is one of at most so many colours.
    """
    made, tensors = subjects.tiny_artifact("coreai", precision), subjects.tiny("maps").weights
    names = [name for name in TARGET.values(made) if name in tensors]
    with TARGET.open(made, RUN, names) as session:
        given = session.run(image())
    held = {array.tobytes() for array in TARGET.constants(made)}
    for name in names:
        stored, tensor = given[name].squeeze(), tensors[name].squeeze()
        assert given[name].tobytes() in held
        stored = stored.T if stored.shape != tensor.shape else stored
        assert not np.array_equal(stored, tensor.astype(np.float16))
        if precision == "w8":
            largest = np.abs(tensor).reshape(len(tensor), -1).max(axis=1)
            off = np.abs(stored - tensor).reshape(len(tensor), -1).max(axis=1)
            assert (off <= largest * (0.5 / 127 + 3 * 2.0**-11)).all()
        else:
            parts = stored if len(np.unique(stored)) > 2 ** PRECISIONS[precision].bits else None
            groups = [stored] if parts is None else np.split(parts, len(parts) // 16)
            assert all(len(np.unique(g)) <= 2 ** PRECISIONS[precision].bits for g in groups)


@needs_core_ai
@pytest.mark.parametrize("precision", COMPRESSED)
def test_answers_of_compressed_files(precision: str) -> None:
    """A file lies within the tolerance of its precision, and a head that is negated is missed.

    Of this small model palettes of 16 leave too little for the samples to decide anything.
    """
    made, model = subjects.tiny_artifact("coreai", precision), subjects.tiny("maps")
    expected = reference.make(subjects.tiny_checkpoint(), model.info, [precision])
    expected = reference.with_stored_weights(
        replace(expected, images=None, predictions=None), model.weights, [made], model.blocks
    )
    report = subjects.judge(made, expected)
    assert report.verdict == ("inconclusive" if precision == "w4" else "pass")
    assert report.outputs[0].worst_ratio < 1
    assert report.weights is not None
    assert (report.weights.tensors, report.weights.missing) == (len(model.weights), ())
    spoilt = {**model.weights, "head.weight": -model.weights["head.weight"]}
    other = reference.with_stored_weights(expected, spoilt, [made], model.blocks)
    report = subjects.judge(made, other)
    assert report.weights is not None
    assert report.weights.missing == ("head.weight",)


@needs_core_ai
@pytest.mark.parametrize("precision", ["w8", "w4"])
def test_kept_blocks_are_not_compressed(precision: str) -> None:
    """The weights of a kept block are in float32, as they are."""
    model = subjects.tiny("maps")
    made = subjects.tiny_artifact("coreai", precision, KEPT)
    exact = {a.squeeze().tobytes() for a in TARGET.constants(made) if a.dtype == np.float32}
    assert model.weights["blocks.2.kv.weight"].tobytes() in exact
    assert model.weights["blocks.0.m.qkv.weight"].tobytes() not in exact
    assert "blocks.2.kv.weight" not in TARGET.values(made)
    assert TARGET.inspect(made.path).keep == (KEPT,)


@needs_core_ai
def test_a_layer_beyond_float16_is_not_compressed(tmp_path: Path) -> None:
    """A layer with a number that float16 cannot hold stays in float32, its weight as it is."""
    model = subjects.tiny("maps")
    name = "blocks.1.m.0.weight"
    constants = {**model.network.constants, name: model.network.constants[name] * 1e6}
    network = replace(model.network, constants=constants)
    asset = tmp_path / "m.aimodel"
    program.ask(program.export, asset, program.Wanted(network, "w8", (), {}, {}))
    held = {each.numbers.tobytes() for each in program.read(asset, program.described).contents}
    assert constants[name].tobytes() in held


@needs_core_ai
def test_int8_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Activations of 8 bits are refused, with the precisions that there are."""
    result = cli("export", "--format", "coreai", "--precision", "int8", "--output", tmp_path / "m")
    assert result.exit_code == 2
    assert "coreai cannot be exported as int8" in result.stderr
    assert "fp16, fp32, w8, w6, w4" in result.stderr


# --- beside Core ML, and in a bundle ----------------------------------------------------------


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """The small model in float16 for Core AI and for Core ML; do not change it."""
    place = tmp_path_factory.mktemp("beside")
    save_file(dict(subjects.tiny_checkpoint().tensors), place / "small.safetensors")
    made = cli(
        *("export", "--checkpoint", place / "small.safetensors", "--format", "coreai,coreml"),
        *("--no-check", "--no-bench", "--output", place / "exported"),
    )
    assert made.exit_code == 0, made.output
    return place / "exported"


def agreements(result: Result) -> list[dict[str, Any]]:
    """What was said about agreement, in the order of artifacts."""
    return [
        finding
        for each in json.loads(result.stdout)["artifacts"]
        for finding in each["parity"]["findings"]
        if finding["kind"].startswith("runtimes-")
    ]


@needs_core_ai
def test_check_says_that_two_runtimes_agree(beside: Path, cli: Cli) -> None:
    """Apple's runtime and the evaluator of packages agree on the same network in float16."""
    result = cli("check", beside, "--json", "-")
    assert result.exit_code == 0, result.output
    (found,) = agreements(result)
    assert found["kind"] == "runtimes-agree"
    assert found["sentence"].startswith("logits: Core AI (coreai-core")
    assert "on the same network in fp16" in found["sentence"]
    assert 0 < found["values"]["error"] < 2.0**-6
    assert found["values"]["rows"] == 10


@needs_core_ai
def test_bare_files_are_held_against_each_other(beside: Path, cli: Cli) -> None:
    """Given one by one, with the checkpoint, they are witnesses too."""
    paths = sorted(beside.glob("core*-fp16/*"))
    assert [path.suffix for path in paths] == [".aimodel", ".mlpackage"]
    checkpoint = beside.parent / "small.safetensors"
    result = cli("check", *paths, "--checkpoint", checkpoint, "--json", "-")
    assert result.exit_code == 0, result.output
    assert [each["kind"] for each in agreements(result)] == ["runtimes-agree"]


@needs_core_ai
def test_a_bundle_verifies_itself(beside: Path, tmp_path: Path, cli: Cli) -> None:
    """``verify.py`` of a bundle runs the asset, and finds a head that was negated."""
    made = cli("bundle", beside, "--format", "coreai", "--output", tmp_path / "b.zip")
    assert made.exit_code == 0, made.output
    with zipfile.ZipFile(tmp_path / "b.zip") as file:
        file.extractall(tmp_path / "b")
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert {"golden.swift", "verify_coreai.swift"} < names
    assert "verify.swift" not in names

    def verify() -> tuple[int, str]:
        command = [sys.executable, tmp_path / "b" / "verify.py", "--format", "coreai"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    status, said = verify()
    assert status == 0, said
    assert ".aimodel: Core AI (coreai-core" in said
    (asset,) = (tmp_path / "b").glob("coreai-fp16/*.aimodel")
    held = find_weights(TARGET.inspect(asset), subjects.tiny("maps").weights)
    held["head.weight"].change(lambda weight: -weight)
    description = tmp_path / "b" / "bundle.json"
    content = json.loads(description.read_text("utf-8"))
    for name in content["files"]:
        raw = (tmp_path / "b" / name).read_bytes()
        content["files"][name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    description.write_text(json.dumps(content), "utf-8")
    status, said = verify()
    assert status == 1, said
    assert "exceeds the tolerance" in said


LATE = """
import asyncio, os, runpy, sys, time

last, answers = int(sys.argv[1]), []
ends, begun = os.pipe()
schedule = asyncio.BaseEventLoop.call_soon_threadsafe


def late(self, call, *given, **more):
    # What a thread of Core AI calls with an answer. With the last one it comes late.
    is_answer = bool(given) and isinstance(given[0], dict)
    answers.extend([None] * is_answer)
    is_last = is_answer and len(answers) == last
    handle = schedule(self, call, *given, **more)
    if is_last:
        os.read(ends, 1)
    return handle


class End:
    # It goes while the interpreter ends, and lets the late thread ask for that interpreter.
    def __del__(self, write=os.write, begun=begun, sleep=time.sleep):
        write(begun, b"x")
        sleep(10)


asyncio.BaseEventLoop.call_soon_threadsafe = late
sys.modules["end"] = End()
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A program that runs another one: argv is the number of its answers, and its own."""


@needs_core_ai
def test_a_verifier_ends_with_its_verdict(beside: Path, tmp_path: Path, cli: Cli) -> None:
    """A thread of Core AI that comes late takes neither the verdict nor what was said.

    Where it asked for an interpreter that was ending, Swift's runtime aborted the process.
    """
    made = cli("bundle", beside, "--format", "coreai", "--output", tmp_path / "b.zip")
    assert made.exit_code == 0, made.output
    with zipfile.ZipFile(tmp_path / "b.zip") as file:
        file.extractall(tmp_path / "b")
    (tmp_path / "late.py").write_text(LATE, "utf-8")
    samples = (tmp_path / "b" / "golden" / "samples.txt").read_text("utf-8").splitlines()
    program = [tmp_path / "b" / "verify.py", "--format", "coreai"]
    answers = str(len(samples) + 1)  # the first is asked for twice
    command = [sys.executable, tmp_path / "late.py", answers, *program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["pass"]), done.stderr


@needs_core_ai
def test_the_lines_of_python_of_a_bundle(beside: Path, tmp_path: Path, cli: Cli) -> None:
    """What the card of a bundle says to type runs, and names a class."""
    cli("bundle", beside, "--format", "coreai", "--output", tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as file:
        file.extractall(tmp_path / "b")
    card = (tmp_path / "b" / "README.md").read_text("utf-8")
    (lines,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=tmp_path / "b",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (tmp_path / "b" / "labels.txt").read_text("utf-8").split("\n")


# --- damage ---------------------------------------------------------------------------------


@needs_core_ai
@pytest.mark.parametrize("name", [program.PROGRAM, program.DIGEST, program.METADATA])
def test_a_missing_file_is_named(copied: Artifact, name: str) -> None:
    """An asset without one of its files is no asset, and the message names the file."""
    (copied.path / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        TARGET.inspect(copied.path)


@needs_core_ai
def test_another_program_is_found_by_its_digest(copied: Artifact) -> None:
    """A program that is not the one whose SHA-256 the asset has is not read."""
    place = copied.path / program.PROGRAM
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256"):
        TARGET.inspect(copied.path)


@needs_core_ai
@pytest.mark.parametrize("text", ["[]", "{", '{"creatorDefinedMetadata": 3}', "\xff"])
def test_hostile_metadata(copied: Artifact, text: str) -> None:
    """Metadata that is not a table of texts is an error of this package."""
    (copied.path / program.METADATA).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError):
        TARGET.inspect(copied.path)


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: whole[:0],
    "zeros": lambda whole: bytes(len(whole)),
    "noise": lambda whole: np.random.default_rng(0).bytes(len(whole)),
    "half": lambda whole: whole[: len(whole) // 2],
    "one byte less": lambda whole: whole[:-1],
    "without its head": lambda whole: whole[64:],
    "twice": lambda whole: whole + whole,
}


@needs_core_ai
@pytest.mark.parametrize("way", GARBAGE)
def test_garbage_for_a_program(copied: Artifact, way: str) -> None:
    """Garbage in the place of a program is refused by an error of ours that names the asset."""
    place = copied.path / program.PROGRAM
    place.write_bytes(GARBAGE[way](place.read_bytes()))
    vouch(place)
    with pytest.raises(ArtifactError, match=re.escape(str(copied.path))):
        TARGET.inspect(copied.path)
    with pytest.raises(ArtifactError), TARGET.open(copied, RUN):
        pass


@needs_core_ai
@pytest.mark.parametrize("name", [program.PROGRAM, program.DIGEST, program.METADATA])
def test_a_folder_or_a_link_in_the_place_of_a_file(copied: Artifact, name: str) -> None:
    """A folder or a link in the place of a file of the asset is refused."""
    place = copied.path / name
    place.unlink()
    place.mkdir()
    with pytest.raises(ArtifactError, match=name):
        TARGET.inspect(copied.path)
    place.rmdir()
    place.symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match=name):
        TARGET.inspect(copied.path)


@needs_core_ai
def test_fuzzed_programs(copied: Artifact) -> None:
    """A program that was changed anywhere is read, or refused by an error of this package.

    Its digest is that of the changed program, so that Core AI gets to see it.
    """
    place = copied.path / program.PROGRAM
    whole = place.read_bytes()
    # The numbers of the weights, most of the file, can be anything; the rest is at both ends.
    draw = np.random.default_rng(0)
    edges = [*range(4000), *range(len(whole) - 8000, len(whole))]
    for turn in range(12):
        content = bytearray(whole)
        for offset in draw.choice(edges, 1 + turn % 3, replace=False):
            content[offset] = int(draw.integers(256))
        place.write_bytes(content[: len(whole) - (turn % 4) * 1000])
        vouch(place)
        try:
            with TARGET.open(copied, RUN) as session:
                session.run(image())
        except LevitExportError:
            continue
