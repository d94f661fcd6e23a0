"""Every trick on every carrier in every format: what a check says of each try.

A *carrier* is what is handed to ``check``: a file that is honest about itself, a file whose
metadata lie as well, an export directory or a bundle in which all hashes were made anew, a cell
of a sweep's store, a saved report. Directories and bundles are tried twice: against the bundled
checkpoint, and against their own golden vectors, which stay honest then.
``scripts/fool-the-check`` tries all of it with many seeds; the tests try some.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import fooling
import mutate
import numpy as np
import subjects
from click.testing import CliRunner

from levit_export.checks import execution
from levit_export.checks.parity import ParityReport
from levit_export.cli import cli
from levit_export.core import packages
from levit_export.core.errors import LevitExportError
from levit_export.core.values import Artifact, Preprocessing, RunOptions, Tolerance, overall
from levit_export.formats import target
from levit_export.models import checkpoints
from levit_export.models.loading import ModelChoice
from levit_export.reports import gate
from levit_export.reports.report import read_report, to_json
from levit_export.storage import device_bundle, export_directory
from levit_export.storage.export_directory import Manifest
from levit_export.workflows import check
from levit_export.workflows.check import CheckRequest
from levit_export.workflows.sweep.cell import Cell, CellStore, Result

CHECKPOINT, OWN = "checkpoint", "golden vectors"
CHUNK = 30
"""How many carriers one check is given, so that they share what they are held against."""
FACTOR = {"w6": 1.1, "w4": 1.4}
"""How far off a weight is. A change below a step of a file's grid is its own rounding."""
HIDDEN = tuple(f"hidden {way}" for way in fooling.WAYS)
TRICKS = ("relabelled", "no passes", "decoys", *HIDDEN, "labels", "recipe", "unlisted")
CARRIERS = ("file", "file and metadata", "directory", "bundle")
LAYOUTS = ("auto", "tokens", "maps")
FORMATS = ("onnx", "openvino", "coreml", *(["coreai"] if target("coreai").can_export().ok else []))
LEFT_OUT = {
    ("maps", "openvino", "w4"),
    *(("tokens", "coreai", precision) for precision in ("fp16", "w8", "w6", "w4")),
}
"""NNCF packs no convolution into 4 bits; Core AI on Linux is slow in tokens in float16."""


@dataclass(frozen=True)
class Base:
    """What is spoilt: the precisions of each format, and what each is called to be judged by
    another tolerance.
    """

    precisions: Mapping[str, tuple[str, ...]]
    coarser: Mapping[str, str]
    tolerances: tuple[str, ...] = ()

    def __hash__(self) -> int:
        """Each is one of the module's constants."""
        return id(self)


EVERYTHING = Base(
    {name: target(name).precisions for name in FORMATS},
    {"fp32": "int8", "fp16": "w4", "int8": "w4", "w8": "w4", "w6": "w4", "w4": "int8"},
)
FEW = Base(
    {name: ("fp16",) if name == "coreml" else ("fp32",) for name in FORMATS},
    {"fp32": "w8", "fp16": "w8"},
    tolerances=("w8",),
)
"""What can be exported and checked within seconds."""


@dataclass(frozen=True)
class Try:
    """One attempt: what was spoilt how, and what it is held against."""

    kind: str
    carrier: str
    trick: str
    precision: str
    seed: int
    against: str = CHECKPOINT
    base: Base = field(default=EVERYTHING, repr=False)
    layout: str = "auto"

    @property
    def cell(self) -> tuple[str, str, str, str]:
        """Where it counts in the table."""
        return self.kind, self.carrier, self.against, self.trick.split()[0]


@dataclass(frozen=True)
class Outcome:
    """What the check said: a verdict, or ``refused`` with a typed error."""

    tried: Try
    verdict: str
    reason: str


# --- honest bases ----------------------------------------------------------------------------


@cache
def exported(base: Base, layout: str = "auto") -> Path:
    """An export of the bundled model in every precision of ``base``; do not change it."""
    place = subjects.folder() / f"fooling-{len(base.tolerances)}-{layout}"
    asked = [(kind, p) for kind, all_of in base.precisions.items() for p in all_of]
    asked += [("onnx", precision) for precision in base.tolerances]
    asked = [each for each in asked if (layout, *each) not in LEFT_OUT]
    wanted = ",".join(f"{kind}={precision}" for kind, precision in asked)
    formats = ",".join(dict.fromkeys(kind for kind, _ in asked))
    given = ("export", "-f", formats, "--precision", wanted, "--no-bench", "-o", str(place))
    if layout != "auto":
        given = (*given, "--layout", layout)
    with fooling.without_accuracy():
        done = CliRunner().invoke(cli, given, prog_name="levit-export")
    if done.exit_code:
        raise RuntimeError(done.output)
    return place


def directory(tried: Try, place: Path) -> tuple[Path, Manifest]:
    """An honest export directory of one artifact with the tolerances of all precisions."""
    whole = exported(tried.base, tried.layout)
    manifest = export_directory.read_manifest(whole)
    wanted = tried.kind, tried.precision
    (entry,) = (a for a in manifest.artifacts if (a.format, a.precision) == wanted)
    mine = Path(entry.path).parts[0]
    folders = {Path(a.path).parts[0] for a in manifest.artifacts} - {mine}
    shutil.copytree(whole, place, ignore=lambda _, names: folders.intersection(names))
    files = {n: e for n, e in manifest.files.items() if Path(n).parts[0] not in folders}
    manifest = replace(manifest, artifacts=(entry,), files=files)
    export_directory.write_manifest(place, manifest)
    return place, manifest


# --- tricks ----------------------------------------------------------------------------------


def _change(artifact: Artifact, key: str, value: str | None) -> None:
    """Let a file's metadata say ``value``, or nothing, under ``key``."""

    def change(said: dict[str, str]) -> None:
        said.pop(fooling.PREFIX + key, None)
        if value is not None:
            said[fooling.PREFIX + key] = value

    fooling.say(artifact, change)


def spoil(artifact: Artifact, tried: Try, *, lies: bool) -> None:
    """Play the trick on the file itself; with ``lies`` its metadata go along with it."""
    draw = np.random.default_rng(tried.seed)
    factor = FACTOR.get(tried.precision, 1.02)
    if tried.trick.startswith("hidden "):
        fooling.hide(artifact, draw, tried.trick.removeprefix("hidden "), 1.004)
    elif tried.trick in ("relabelled", "no passes", "decoys"):
        fooling.scale_weights(artifact, draw, factor)
    if tried.trick == "decoys":
        fooling.plant_decoys(artifact, draw)
    if not lies:
        return
    if tried.trick in ("relabelled", *HIDDEN):
        _change(artifact, "precision", tried.base.coarser[tried.precision])
    elif tried.trick == "no passes":
        _change(artifact, "passes", None)
    elif tried.trick == "decoys":
        fooling.say(artifact, dict.clear)
    elif tried.trick == "labels":
        _change(artifact, "labels", json.dumps(_labels(subjects.digits().info.labels, draw)))
    elif tried.trick == "recipe":
        recipe = _recipe(subjects.digits().info.preprocessing, draw)
        _change(artifact, "preprocessing", json.dumps(vars(recipe)))


def _labels(labels: Sequence[str], draw: np.random.Generator) -> list[str]:
    """Two classes exchange their names."""
    one, other = draw.choice(len(labels), 2, replace=False)
    changed = list(labels)
    changed[one], changed[other] = changed[other], changed[one]
    return changed


def _recipe(recipe: Preprocessing, draw: np.random.Generator) -> Preprocessing:
    """Something else is subtracted, or divided by."""
    field = ("mean", "std")[draw.integers(2)]
    return replace(recipe, **{field: tuple(draw.uniform(0.3, 0.7, 3).tolist())})


def _spoil_directory(folder: Path, manifest: Manifest, tried: Try) -> None:
    """Play the trick on a directory, and make the hashes of its manifest anew.

    Against the checkpoint the manifest lies along with the file. Its own golden vectors know
    neither names nor recipe, so there one of the two lies, and the other does not.
    """
    draw = np.random.default_rng(tried.seed)
    artifact = export_directory.artifacts(folder, manifest)[0]
    if tried.trick == "unlisted":
        beside = Path(manifest.artifacts[0].path).parts[0]
        subjects.copy(artifact, _made(folder / (beside, "extra")[tried.seed % 2] / "better"))
        return
    knows_names = tried.trick not in ("labels", "recipe") or tried.against == CHECKPOINT
    file_lies = knows_names or tried.seed % 2 == 0
    spoil(artifact, tried, lies=file_lies)
    lies = knows_names or not file_lies
    if lies and tried.trick == "labels":
        names = tuple(_labels(manifest.model.labels, draw))
        manifest = replace(manifest, model=replace(manifest.model, labels=names))
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
    elif lies and tried.trick == "recipe":
        recipe = _recipe(manifest.model.preprocessing, draw)
        manifest = replace(manifest, model=replace(manifest.model, preprocessing=recipe))
    elif tried.trick == "no passes":
        manifest = replace(manifest, passes=())
    elif tried.trick in ("relabelled", *HIDDEN):
        manifest = _renamed(folder, manifest, tried.base.coarser[tried.precision])
    manifest = replace(manifest, files=export_directory.list_files(folder))
    export_directory.write_manifest(folder, manifest)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _renamed(folder: Path, manifest: Manifest, precision: str) -> Manifest:
    """The manifest and the artifact's folder call it by another precision."""
    (entry,) = manifest.artifacts
    old, *rest = Path(entry.path).parts
    new = f"{entry.format}-{precision}"
    (folder / old).rename(folder / new)
    entry = replace(entry, precision=precision, path=Path(new, *rest).as_posix())
    return replace(manifest, artifacts=(entry,))


def _bundled(folder: Path, manifest: Manifest, tried: Try, path: Path) -> Path:
    """A bundle of a spoilt directory; files that no manifest lists are put into the zip."""
    if tried.trick != "unlisted":
        _spoil_directory(folder, manifest, tried)
        return device_bundle.write(folder, path)
    device_bundle.write(folder, path)
    entries = mutate.contents(path.read_bytes())
    _spoil_directory(folder, manifest, tried)
    known = {name for name, _ in entries}
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    extra = [
        (name, file.read_bytes())
        for name, file in found.items()
        if name not in known and name not in export_directory.REPORTS
    ]
    path.write_bytes(mutate.pack(mutate.vouched([*entries, *extra])))
    return path


# --- what the check says ---------------------------------------------------------------------


def tries(kind: str, seeds: Sequence[int], base: Base = EVERYTHING) -> Iterator[Try]:
    """Every trick on every carrier; the precisions take turns over seeds and tricks."""
    all_of = base.precisions[kind]
    for carrier in CARRIERS:
        holds_itself = carrier in ("directory", "bundle")
        for at, trick in enumerate(TRICKS):
            if carrier == "file" and trick in ("no passes", "labels", "recipe", "unlisted"):
                continue  # which are about what is said, or about folders
            if carrier == "file and metadata" and trick == "unlisted":
                continue
            for seed in seeds:
                precision = all_of[(seed + at) % len(all_of)]
                for against in (CHECKPOINT, OWN) if holds_itself else (CHECKPOINT,):
                    yield Try(kind, carrier, trick, precision, seed, against, base)


def honest(kind: str, rounds: int, base: Base = EVERYTHING) -> Iterator[Try]:
    """Every precision in every layout on every carrier as it was made, which must pass.

    A check that refuses these would show nothing by refusing others. Files are held against the
    checkpoint ``rounds`` times, each on the inputs of another seed; golden vectors are what they
    are, so what is held against those is tried once.
    """
    for layout in LAYOUTS:
        for carrier in ("file", "directory", "bundle"):
            for precision in base.precisions[kind]:
                if (layout, kind, precision) in LEFT_OUT:
                    continue
                for seed in range(rounds):
                    yield Try(kind, carrier, "honest", precision, seed, CHECKPOINT, base, layout)
                if carrier != "file":
                    yield Try(kind, carrier, "honest", precision, 0, OWN, base, layout)


def foreign(kind: str, rounds: int) -> Iterator[Try]:
    """What the vendors' converters make of the same weights, on the inputs of ``rounds`` seeds.

    Core AI's is a package of its own, which is not needed here.
    """
    if kind == "coreai":
        return
    for precision in ("fp32",) if kind == "onnx" else ("fp32", "fp16"):
        for seed in range(rounds):
            yield Try(kind, "foreign file", "honest", precision, seed)


@cache
def converted(kind: str, precision: str) -> Path:
    """The bundled model by a vendor's converter, with the names of the interface and no metadata.

    Nothing is fused or prepared: torch.onnx, OpenVINO's and coremltools' frontends get the module
    as it was trained.
    """
    import torch

    module = checkpoints.bundled().build().eval()
    (given,) = subjects.digits().signature.inputs
    (answer,) = subjects.digits().signature.outputs
    example = torch.zeros([side or 1 for side in given.shape])
    path = subjects.folder() / f"foreign-{kind}-{precision}" / f"m{target(kind).suffix}"
    path.parent.mkdir()
    if kind == "onnx":
        names = {"input_names": [given.name], "output_names": [answer.name]}
        torch.onnx.export(module, (example,), path, dynamo=True, external_data=False, **names)
    elif kind == "openvino":
        openvino = packages.openvino()
        graph = openvino.convert_model(module, example_input=example, input=[example.shape])
        graph.inputs[0].set_names({given.name})
        graph.outputs[0].set_names({answer.name})
        openvino.save_model(graph, path, compress_to_fp16=precision == "fp16")
    else:
        ct = packages.coremltools()
        package = ct.convert(
            torch.jit.trace(module, example),
            inputs=[ct.TensorType(name=given.name, shape=example.shape)],
            outputs=[ct.TensorType(name=answer.name)],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=getattr(ct.precision, precision.replace("fp", "FLOAT")),
            skip_model_load=True,
        )
        package.save(str(path))
    return path


def make(tried: Try, place: Path) -> Path:
    """The carrier of a try, below the empty folder ``place``."""
    if tried.carrier == "foreign file":
        made = converted(tried.kind, tried.precision)
        shutil.copytree(made.parent, place, dirs_exist_ok=True)
        return place / made.name
    folder, manifest = directory(tried, place / "export")
    if tried.carrier in ("file", "file and metadata"):
        (found,) = export_directory.artifacts(folder, manifest)
        artifact = subjects.copy(found, _made(place / "bare"))
        spoil(artifact, tried, lies=tried.carrier != "file")
        shutil.rmtree(folder)
        return artifact.path
    if tried.carrier == "bundle":
        path = _bundled(folder, manifest, tried, place / "b.zip")
        shutil.rmtree(folder)
        return path
    if tried.trick != "honest":
        _spoil_directory(folder, manifest, tried)
    return folder


def _held(tried: Try) -> tuple[str, int]:
    """What a try is held against, and the seed of the inputs."""
    return tried.against, tried.seed if tried.trick == "honest" else 0


def judged(wanted: Sequence[Try]) -> list[Outcome]:
    """What checks say of tries that are all held against the same."""
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="fooling-") as folder, ExitStack() as stack:
        paths: dict[Path, Try] = {}
        for number, tried in enumerate(wanted):
            try:
                path = make(tried, _made(Path(folder) / str(number)))
                if tried.carrier == "bundle":
                    path = stack.enter_context(device_bundle.open_bundle(path))
                paths[path] = tried
            except LevitExportError as error:
                found.append(Outcome(tried, "refused", str(error)))
        found += _checked(paths)
    return found


def _checked(paths: Mapping[Path, Try]) -> list[Outcome]:
    """One check of all of them; where one is refused, it is looked for by halving."""
    if not paths:
        return []
    ((against, seed),) = {_held(tried) for tried in paths.values()}
    choice = ModelChoice("levit_digits") if against == CHECKPOINT else ModelChoice()
    try:
        with fooling.without_accuracy():
            report = check.check(CheckRequest(tuple(paths), choice=choice, seed=seed, drift=False))
    except LevitExportError as error:
        if len(paths) == 1:
            return [Outcome(tried, "refused", str(error)) for tried in paths.values()]
        each = list(paths.items())
        middle = len(each) // 2
        return [*_checked(dict(each[:middle])), *_checked(dict(each[middle:]))]
    found = []
    for path, tried in paths.items():
        # A runtime may execute an artifact in several ways, each of which is a row.
        rows = [
            artifact.parity
            for artifact in report.artifacts
            if len(paths) == 1 or Path(artifact.path).is_relative_to(path)
        ]
        verdict = overall(row.verdict for row in rows)
        found.append(Outcome(tried, verdict, "; ".join(row.reason for row in rows)))
    return found


# --- stores and reports ----------------------------------------------------------------------


def swapped(kind: str, seed: int, base: Base = EVERYTHING) -> Outcome:
    """A finished cell of a sweep whose artifact was replaced, all hashes but the result's new."""
    precision = base.precisions[kind][seed % len(base.precisions[kind])]
    tried = Try(kind, "store", "swapped", precision, seed, base=base)
    with tempfile.TemporaryDirectory(prefix="fooling-") as folder:
        store = CellStore(Path(folder) / "store")
        cell = Cell("levit_digits", ModelChoice("levit_digits"), "bundled", kind, precision)
        with store.staged() as work:
            made, manifest = directory(tried, work / "export")
            (artifact,) = export_directory.artifacts(made, manifest)
            row = execution.Row(artifact, RunOptions())
            said = execution.describe(row, made, ParityReport("", 0, ()), None, None)
            done = Result("pass", "", said, checkpoints.bundled().describe(), "export")
            place = store.commit(work, cell, done)
        assert store.find(cell) is not None
        trick = ("decoys", "labels", "recipe", *HIDDEN[:3])[seed % 6]
        _spoil_directory(place / "export", manifest, replace(tried, trick=trick))
        is_believed = store.find(cell) is not None
    return Outcome(tried, "pass" if is_believed else "done again", "")


@cache
def _failed_report(kind: str, base: Base) -> str:
    """The saved report of a file with a tensor that is a little off."""
    with tempfile.TemporaryDirectory(prefix="fooling-") as folder:
        tried = Try(kind, "file", "relabelled", base.precisions[kind][0], 0, base=base)
        path = make(tried, Path(folder))
        choice = ModelChoice("levit_digits")
        with fooling.without_accuracy():
            report = check.check(CheckRequest((path,), choice=choice, drift=False))
    assert report.verdict == "fail"
    return json.dumps(to_json(report), allow_nan=False)


def _without_outputs(parity: dict[str, Any]) -> None:
    parity["outputs"] = []


def _without_findings(parity: dict[str, Any]) -> None:
    parity["findings"] = []


def _without_errors(parity: dict[str, Any]) -> None:
    parity["findings"] = []
    for output in parity["outputs"]:
        output.update(errors=[], scales=[], spreads=[], rows=[], worst_ratio=0.1)


def _without_anything(parity: dict[str, Any]) -> None:
    parity.update(findings=[], outputs=[], weights=None)


def _nothing_but_words(_: dict[str, Any]) -> None:
    """The verdict alone is changed."""


HOLLOW = (
    _without_outputs,
    _without_findings,
    _without_errors,
    _without_anything,
    _nothing_but_words,
)


def hollow(kind: str, seed: int, base: Base = EVERYTHING) -> Outcome:
    """A saved report of a failure that says pass, and keeps less of what was found."""
    tried = Try(kind, "report", "hollow", base.precisions[kind][0], seed, base=base)
    content = json.loads(_failed_report(kind, base))
    content["verdict"] = "pass"
    for artifact in content["artifacts"]:
        artifact["parity"]["verdict"] = "pass"
        HOLLOW[seed % len(HOLLOW)](artifact["parity"])
    with tempfile.TemporaryDirectory(prefix="fooling-") as folder:
        path = Path(folder) / "report.json"
        path.write_text(json.dumps(content), "utf-8")
        try:
            saved = gate.recheck(read_report(path), Tolerance(0.0, (0.5,), "given"))
        except LevitExportError as error:
            return Outcome(tried, "refused", str(error))
    return Outcome(tried, saved.verdict, "; ".join(a.parity.reason for a in saved.artifacts))


# --- the table -------------------------------------------------------------------------------


def run(
    kinds: Sequence[str], seeds: Sequence[int], rounds: int = 1, base: Base = EVERYTHING
) -> Iterator[Outcome]:
    """Every outcome: honest carriers, all tries, stores and reports, format by format."""
    for kind in kinds:
        wanted = [*honest(kind, rounds, base), *foreign(kind, rounds), *tries(kind, seeds, base)]
        together: dict[tuple[str, int], list[Try]] = {}
        for tried in wanted:
            together.setdefault(_held(tried), []).append(tried)
        for mine in together.values():
            for start in range(0, len(mine), CHUNK):
                yield from judged(mine[start : start + CHUNK])
        for seed in seeds:
            yield swapped(kind, seed, base)
            yield hollow(kind, seed, base)


def table(outcomes: Sequence[Outcome]) -> str:
    """How many tries there were of each cell, and how many passed."""
    counts = Counter(o.tried.cell for o in outcomes)
    passed = Counter(o.tried.cell for o in outcomes if o.verdict == "pass")
    columns = list(dict.fromkeys(cell[-1] for cell in counts))
    rows = dict.fromkeys(cell[:3] for cell in counts)
    lines = ["| carrier | held against | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for kind, carrier, against in rows:
        cells = [(kind, carrier, against, column) for column in columns]
        texts = [f"{passed[c]} of {counts[c]}" if counts[c] else "" for c in cells]
        lines.append(f"| {kind}, {carrier} | {against} | " + " | ".join(texts) + " |")
    return "\n".join(lines)
