"""Accuracy and agreement on images: the counts, the workers, and what is written down."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from support import Exported

from levit_export.checks.results import Accuracy
from levit_export.core import hashing, processes
from levit_export.core.errors import (
    ArtifactError,
    CheckpointError,
    DataError,
    MissingDependencyError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.values import Availability, Preprocessing
from levit_export.formats.onnx.target import OnnxTarget
from levit_export.inputs import samples
from levit_export.inputs.images import Unreadable, open_images
from levit_export.inputs.images.folders import Files
from levit_export.inputs.images.image_set import Entry, ImageSet
from levit_export.models.loading import ModelChoice
from levit_export.reports import report
from levit_export.storage import export_directory
from levit_export.workflows.evaluate import (
    EvaluateRequest,
    evaluate,
    on_cluster,
    predict,
    score,
)
from levit_export.workflows.evaluate.predict import Answers, Ranking, Weights, Workload

FILE = "onnx-fp32/levit_digits.onnx"
DIGITS = tuple("0123456789")
CLASS = 3
SMALL = Preprocessing("digits", resize=(8, 8), crop=(8, 8), resize_mode="exact")


@pytest.fixture
def exported(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A copy of the shared export: ``evaluate`` writes what it found into the report there."""
    folder = tmp_path_factory.mktemp("copy") / "levit_digits"
    shutil.copytree(exported.folder, folder)
    return dataclasses.replace(exported, folder=folder)


def digit_folder(folder: Path, count: int) -> Path:
    """Held-out digits as PNG files in class folders; every class has a folder."""
    pixels, labels = samples.held_out_digits()
    for name in DIGITS:
        (folder / name).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(pixels[i]).save(folder / str(labels[i]) / f"{i:03}.png")
    return folder


def change_the_head(folder: Path, change: Callable[[np.ndarray], object]) -> None:
    """Change the classifier's bias, and let the manifest vouch for it."""
    proto = onnx.load(folder / FILE)
    (head,) = [node for node in proto.graph.node if node.op_type == "Gemm"]
    (bias,) = [t for t in proto.graph.initializer if t.name == head.input[2]]
    values = numpy_helper.to_array(bias).copy()
    change(values)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(proto, folder / FILE)
    edit_manifest(
        folder, lambda m: m["files"][FILE].update(vars(hashing.file_entry(folder / FILE)))
    )


def edit_manifest(folder: Path, edit: Callable[[Any], object]) -> None:
    """Change the parsed manifest."""
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    edit(content)
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def forget_the_checkpoint(folder: Path) -> None:
    """Let the manifest name a checkpoint that nobody has."""
    edit_manifest(folder, lambda m: m["model"].update(checkpoint_sha256="00"))


def stuck(values: np.ndarray) -> None:
    """Ranking with one class, whatever is seen."""
    values[CLASS] += 1e6


def run(path: Path, data: str | Path = "digits", **options: Any) -> report.Report:
    """Evaluate in this process."""
    return evaluate(EvaluateRequest((path,), data, **{"workers": 1, **options}))


def only(found: report.Report) -> Accuracy:
    """The accuracy of the one artifact."""
    (artifact,) = found.artifacts
    assert artifact.accuracy is not None
    return artifact.accuracy


def image_set(labels: list[int]) -> ImageSet:
    """A list of images that are nowhere."""
    entries = tuple(Entry(f"{i}.png", label, i) for i, label in enumerate(labels))
    return ImageSet("nowhere", entries, store=None, fingerprint="ab")  # type: ignore[arg-type]


def ranked(*best: int) -> Ranking:
    """An answer of six classes in which only the best matters, the last is class 5 or 4."""
    rows = [[b, *[c for c in range(6) if c != b]][:5] for b in best]
    return Ranking(np.array(rows, np.int32), "a runtime")


def test_counts_by_hand() -> None:
    """Right, lost, gained, flips, top-5 and the p of the split, as counted by hand."""
    labels = [0, 1, 2, 3, 4, 5, 9]
    images = image_set(labels)
    # The last image could not be read. Class 5 is beyond the five best but where it is first.
    found = Answers(
        np.arange(6),
        (ranked(0, 1, 1, 1, 4, 0), ranked(0, 1, 2, 3, 0, 1)),
        ((6, Unreadable("6.png", "is empty")),),
    )
    accuracy = score.judge(
        found, 0, images, classes=6, expected=found.answers[1], max_drop=10.0, remarks=("so",)
    )
    assert accuracy == Accuracy(
        dataset="nowhere",
        images=6,
        correct=3,
        reference_correct=4,
        agreement=2 / 6,
        top5_correct=5,
        flips=4,
        lost=2,
        gained=1,
        mcnemar_p=1.0,
        drop=100 / 6,
        max_drop=10.0,
        skipped=1,
        skipped_names=("6.png: is empty",),
        fingerprint="ab",
        runtime="a runtime",
        remarks=("so",),
    )
    assert score.verdict(found.answers[0], accuracy)[0] == "fail"
    assert (accuracy.top1, accuracy.top5) == (50.0, 100 * 5 / 6)


def test_counts_without_labels() -> None:
    """Without labels the drop is the share of other answers; nothing is said of right or wrong."""
    found = Answers(np.arange(4), (ranked(0, 1, 2, 3), ranked(0, 1, 2, 2)), ())
    accuracy = score.judge(
        found, 0, image_set([-1] * 4), classes=6, expected=found.answers[1], max_drop=25.0
    )
    assert (accuracy.drop, accuracy.flips, accuracy.agreement) == (25.0, 1, 0.75)
    assert (accuracy.correct, accuracy.lost, accuracy.mcnemar_p) == (None, None, None)
    assert (accuracy.top1, accuracy.top1_interval, accuracy.top5) == (None, None, None)
    assert not accuracy.exceeded


@pytest.mark.parametrize(("limit", "exceeded"), [(0.3, False), (0.2999, True), (None, False)])
def test_a_drop_as_large_as_allowed(limit: float | None, *, exceeded: bool) -> None:
    """3 images of 1000 are 0.3 points, and 0.3 points are not more than 0.3 points."""
    labels = np.zeros(1000, int)
    before, now = np.zeros(1000, int), np.r_[np.ones(3, int), np.zeros(997, int)]
    found = Answers(np.arange(1000), (ranked(*now), ranked(*before)), ())
    accuracy = score.judge(
        found, 0, image_set(labels.tolist()), classes=6, expected=found.answers[1], max_drop=limit
    )
    assert accuracy.exceeded is exceeded


def test_ties_and_nan() -> None:
    """Equal scores go to the lower class; an answer with NaN or infinity is that of no class."""
    scores = np.array([[1, 2, 2], [np.nan, 1, 0], [np.inf, 1, 0]], np.float32)
    assert predict._ranked(scores).tolist() == [[1, 2, 0], [-1] * 3, [-1] * 3]


def test_digits(copied: Path) -> None:
    """The bundled model has 357 of 360, as PyTorch has, and ``report.json`` says so afterwards."""
    found = run(copied)
    accuracy = only(found)
    assert (found.verdict, accuracy.correct, accuracy.reference_correct) == ("pass", 357, 357)
    assert (accuracy.flips, accuracy.mcnemar_p, accuracy.drop) == (0, 1.0, 0.0)
    assert accuracy.top5_correct == 360
    written = json.loads((copied / "report.json").read_text(encoding="utf-8"))
    expected = json.loads(json.dumps(report.accuracy_to_json(accuracy)))
    assert written["artifacts"][0]["accuracy"] == expected
    assert written["artifacts"][0]["parity"]["verdict"] == "pass"
    assert export_directory.damage(copied, export_directory.read_manifest(copied)) == []


def test_a_model_that_is_stuck(copied: Path) -> None:
    """A model that always says 3 has the threes right; the gate fails with the drop."""
    change_the_head(copied, stuck)
    labels = samples.held_out_digits()[1]
    threes = int((labels == CLASS).sum())
    found = run(copied, max_drop=50)
    accuracy = only(found)
    assert (accuracy.correct, accuracy.reference_correct) == (threes, 357)
    assert accuracy.lost is not None
    assert accuracy.gained is not None
    assert accuracy.lost - accuracy.gained == 357 - threes
    assert accuracy.drop == pytest.approx(100 * (357 - threes) / 360)
    assert found.verdict == "fail"
    assert any("exceeds 50" in note for note in found.artifacts[0].notes)
    assert run(copied, max_drop=100).verdict == "pass"


def test_nan_is_a_failure(copied: Path) -> None:
    """A model that answers NaN has nothing right and fails without any gate."""
    change_the_head(copied, lambda values: values.fill(np.nan))
    found = run(copied, limit=20)
    assert (found.verdict, only(found).correct, only(found).agreement) == ("fail", 0, 0.0)
    assert "NaN or infinity on 20 of 20 images" in found.artifacts[0].notes


def test_unlabelled(copied: Path, tmp_path: Path) -> None:
    """On images of no known class it is agreement that is measured and gated."""
    pixels, _ = samples.held_out_digits()
    np.savez(tmp_path / "x.npz", images=pixels[:40])
    assert only(run(copied, tmp_path / "x.npz", max_drop=0)).agreement == 1.0
    change_the_head(copied, stuck)
    found = run(copied, tmp_path / "x.npz", max_drop=50)
    assert found.verdict == "fail"
    assert only(found).correct is None


def test_folder_with_unreadable_images(exported: Exported, tmp_path: Path) -> None:
    """One unreadable image is left out and named; the counts are of the others."""
    folder = digit_folder(tmp_path / "data", 30)
    first = open_images(folder, labels=DIGITS).entries[4].name
    (folder / first).write_bytes(b"")
    accuracy = only(run(exported.folder, folder))
    assert (accuracy.images, accuracy.skipped) == (29, 1)
    assert accuracy.skipped_names == (f"{first}: is empty",)


def test_mostly_unreadable(exported: Exported, tmp_path: Path) -> None:
    """Where more than a tenth is unreadable it is an error."""
    folder = digit_folder(tmp_path / "data", 10)
    for entry in open_images(folder, labels=DIGITS).entries[:2]:
        (folder / entry.name).write_bytes(b"")
    with pytest.raises(DataError, match="2 of 10 images"):
        run(exported.folder, folder)


def test_workers_do_not_matter(exported: Exported, tmp_path: Path) -> None:
    """Two workers give the answers of one, and of PyTorch, unreadable images included."""
    folder = digit_folder(tmp_path / "data", 40)
    images = open_images(folder, labels=DIGITS)
    (folder / images.entries[7].name).write_bytes(b"")
    found = {
        count: run(exported.folder, folder, workers=count, batch=4).artifacts for count in (1, 2)
    }
    assert found[1] == found[2]
    assert found[1][0].accuracy is not None
    assert found[1][0].accuracy.skipped == 1


def test_order_does_not_matter() -> None:
    """Parts are put together in the order of the images, whichever came first."""
    one = Answers(np.array([0, 1, 4]), (ranked(0, 1, 4),), ((5, Unreadable("5", "x")),))
    two = Answers(np.array([2, 6]), (ranked(2, 0),), ((3, Unreadable("3", "x")),))
    for parts in ([one, two], [two, one]):
        merged = predict.merge(parts)
        assert merged.rows.tolist() == [0, 1, 2, 4, 6]
        assert merged.answers[0].best[:, 0].tolist() == [0, 1, 2, 4, 0]
        assert [row for row, _ in merged.unreadable] == [3, 5]


def test_failure_in_one_part() -> None:
    """An artifact that failed in one worker has failed."""
    one = Answers(np.array([0]), (ranked(0),), ())
    two = Answers(np.array([1]), (Ranking(np.empty((0, 5), np.int32), "", "no memory"),), ())
    merged = predict.merge([one, two])
    assert merged.answers[0].failure == "no memory"


def workload(**changes: Any) -> Workload:
    """A workload without artifacts."""
    empty = Workload(
        images=open_images("digits", labels=DIGITS),
        recipe=None,  # type: ignore[arg-type]
        classes=10,
        rows=(),
        reference=None,
        groups=((0,), (1,)),
        batch=1,
        threads=1,
    )
    return replace(empty, **changes)


def never_done(_: Workload, __: object, groups: Iterable[object], ___: object) -> Answers:
    """What this process does while a worker has not been heard of: take groups, slowly."""
    for _group in groups:
        time.sleep(0.01)
    raise AssertionError("the worker's death was not noticed")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('out of luck')", "status 1: out of luck"),
        ("import os; os.kill(os.getpid(), 9)", "status -9"),
        ("print('no pickle')", "status 0"),
    ],
)
def test_crashed_worker(monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    """A worker that dies is an error with its status and last words, never a hang."""
    monkeypatch.setattr(predict, "classified", never_done)
    monkeypatch.setattr(processes, "SERVE", code)
    with pytest.raises(RuntimeFailedError, match=message):
        predict.run(workload(groups=((0,),) * 3000), 2)


def test_a_worker_that_dies_with_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that a dead worker had taken are not left out: it is an error."""
    monkeypatch.setattr(predict, "_answer", die)
    own = predict.classified

    def slowly(task_: Workload, entrants: object, groups: Iterable[Any], done: object) -> Answers:
        def late() -> Iterator[Any]:
            for group in groups:
                time.sleep(0.3)
                yield group

        return own(task_, entrants, late(), done)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "classified", slowly)
    with pytest.raises(RuntimeFailedError, match="status 9"):
        predict.run(workload(recipe=SMALL, groups=tuple((i,) for i in range(60))), 2)


def die(_: object) -> None:
    """End the process as a crash does."""
    os._exit(9)


def test_a_worker_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that still starts when there is nothing left to do is not waited for."""
    monkeypatch.setattr(processes, "SERVE", "import time; time.sleep(60)")
    seen: list[object] = []
    monkeypatch.setattr(
        predict,
        "classified",
        lambda _, __, groups, ___: seen.extend(groups) or predict.Answers(np.arange(2), (), ()),
    )
    begun = time.monotonic()
    assert predict.run(workload(), 2).rows.tolist() == [0, 1]
    assert seen == [(0,), (1,)]
    assert time.monotonic() - begun < 50


@pytest.mark.parametrize(
    ("worth_s", "most", "expected"), [(1e9, 8, 0), (1e-9, 3, 2), (1e-9, 1, 0), (1e-9, 99, 4)]
)
def test_workers_that_pay(
    monkeypatch: pytest.MonkeyPatch, worth_s: float, most: int, expected: int
) -> None:
    """Unasked, others are started by the work that is left, and no more than there are groups."""
    begun: list[object] = []

    monkeypatch.setattr(predict._Heap, "worked_off_by", lambda _, worker: begun.append(worker))
    whole = workload(recipe=SMALL, groups=tuple((i,) for i in range(7)))
    found = predict.run(whole, None, most=most, worth_s=worth_s)
    assert len(begun) == expected
    assert found.rows.tolist() == list(range(7))


def test_workers_that_wait() -> None:
    """Processes started early are taken first, and whichever was not needed is gone as well."""
    whole = workload(recipe=SMALL, groups=((0,), (1,), (2,)))
    with predict.ready(3, ("colorsys", "no_such_package")) as waiting:
        pids = {worker.submit(os.getpid).result() for worker in waiting}
        found = predict.run(whole, 3, waiting=waiting)
        assert waiting[0].submit(os.getpid).result() in pids
    assert found.rows.tolist() == [0, 1, 2]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_a_worker_raises(copied: Path, tmp_path: Path) -> None:
    """An error on purpose crosses the process border as what it is."""
    forget_the_checkpoint(copied)
    file = tmp_path / "x.npz"
    pixels, _ = samples.held_out_digits()
    np.savez(file, images=pixels[:100], labels=np.zeros(100, int))
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        run(copied, file, workers=2, batch=10)


def test_another_checkpoint_in_the_worker() -> None:
    """A worker that finds other weights than the evaluation began with refuses them."""
    with pytest.raises(CheckpointError, match="000000"):
        predict.run(workload(reference=Weights(ModelChoice(), "0" * 64)), 1)


def test_artifact_that_cannot_be_run(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing runtime is not a pass: the artifact was not evaluated, and why."""
    absent = Availability(ok=False, reason="no runtime", fix="get one")
    monkeypatch.setattr(OnnxTarget, "can_run", lambda _: absent)
    found = run(exported.folder)
    assert (found.verdict, found.artifacts[0].accuracy) == ("not-run", None)
    assert "not evaluated: no runtime: get one" in found.artifacts[0].notes


def test_runtime_that_fails(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that raises is reported, and nothing is claimed."""

    def fail(*_: object) -> None:
        raise RuntimeFailedError("it broke", remedy="")

    monkeypatch.setattr("levit_export.formats.onnx.target.OnnxSession.run", fail)
    found = run(exported.folder, limit=3)
    assert found.verdict == "not-run"
    assert "not evaluated: it broke" in found.artifacts[0].notes


def test_bare_artifact(exported: Exported) -> None:
    """A single file takes recipe, classes and reference from the model that is named."""
    file = exported.folder / FILE
    found = run(file, choice=ModelChoice(model="levit_digits"), limit=36)
    assert (only(found).flips, only(found).images) == (0, 36)
    with pytest.raises(UsageError, match="does not say which recipe"):
        run(file)


def test_several_paths(exported: Exported, copied: Path) -> None:
    """Every path has its row, in the order in which they were given."""
    change_the_head(copied, stuck)
    request = EvaluateRequest((copied, exported.folder), "digits", limit=36, workers=1)
    first, second = (a.accuracy for a in evaluate(request).artifacts)
    assert first is not None
    assert second is not None
    assert first.correct != second.correct
    assert second.correct == second.reference_correct == first.reference_correct


def test_unknown_checkpoint(copied: Path, tmp_path: Path) -> None:
    """Without its checkpoint an export is evaluated without agreement, and it is said."""
    forget_the_checkpoint(copied)
    accuracy = only(run(copied))
    assert (accuracy.correct, accuracy.agreement, accuracy.drop) == (357, None, None)
    assert any("--checkpoint FILE" in remark for remark in accuracy.remarks)
    with pytest.raises(UsageError, match="--max-drop 1 compares"):
        run(copied, max_drop=1.0)
    np.savez(tmp_path / "x.npz", images=samples.held_out_digits()[0][:4])
    with pytest.raises(UsageError, match="nothing can be found out"):
        run(copied, tmp_path / "x.npz")


def test_without_torch(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch is absent accuracy is measured; naming a checkpoint says what is missing."""
    monkeypatch.setitem(sys.modules, "torch", None)
    accuracy = only(run(exported.folder, limit=20))
    assert accuracy.agreement is None
    assert any("PyTorch is not installed" in remark for remark in accuracy.remarks)
    with pytest.raises(MissingDependencyError, match="need PyTorch"):
        run(exported.folder, choice=ModelChoice(model="levit_digits"))


def test_altered_directory(copied: Path) -> None:
    """What was altered after its check is not evaluated under its name."""
    (copied / "labels.txt").write_text("x\n" * 10)
    with pytest.raises(ArtifactError, match=r"altered after .*labels\.txt"):
        run(copied)


def test_another_model(exported: Exported) -> None:
    """A checkpoint of other classes cannot be the reference."""
    choice = ModelChoice(model="levit_128s", random_seed=0)
    with pytest.raises(UsageError, match=r"1000 classes, the export .* 10"):
        run(exported.folder, choice=choice)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "none of ours"),
        ('{"schema": 9}', "schema 9"),
        ("[]", "none of ours"),
        (None, "No such"),
    ],
)
def test_report_that_cannot_be_updated(copied: Path, text: str | None, reason: str) -> None:
    """A report that is not there or not ours stays as it is, and it is said."""
    path = copied / "report.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    found = run(copied, limit=4)
    assert found.verdict == "pass"
    assert any(reason in note for note in found.artifacts[0].notes)
    assert (path.read_text() if path.exists() else None) == text
    assert not list(copied.glob(".report*"))


def test_core_ml(tmp_path: Path) -> None:
    """A Core ML package is run by the reference evaluator, which is said."""
    import subjects

    place = tmp_path / "m.mlpackage"
    shutil.copytree(subjects.artifact("coreml", "fp16").path, place)
    found = run(place, choice=ModelChoice(model="levit_digits"), limit=6)
    assert (found.verdict, only(found).images) == ("pass", 6)
    assert any("reference evaluator" in note for note in found.artifacts[0].notes)


def test_chunks_without_a_readable_image_have_keys_of_their_own(tmp_path: Path) -> None:
    """Two chunks in which nothing can be read are two chunks: one's counts are not the other's."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    entries = tuple(Entry(name, -1, place) for place, name in enumerate(("a.png", "b.png")))
    images = ImageSet("broken", entries, store=Files(tmp_path), fingerprint="ab")
    first, second = on_cluster.chunks(images, [(0,), (1,)], 1)
    assert [len(chunk.unreadable) for chunk in (first, second)] == [1, 1]
    assert first.sha256 != second.sha256
