"""``export --embed-preprocessing --softmax``: what is written, checked, bundled and refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import Cli, Exported

from levit_export.core.errors import UsageError
from levit_export.core.values import Embedded
from levit_export.inputs.samples import held_out_digits
from levit_export.storage import export_directory
from levit_export.workflows.drift import DriftRequest, trace


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Exported:
    """The bundled model as ONNX, from raw pixels to probabilities; do not change its files."""
    folder = tmp_path_factory.mktemp("embedded") / "out"
    flags = ("--embed-preprocessing", "--softmax", "--no-bench")
    result = cli("export", "--format", "onnx", *flags, "--output", folder)
    return Exported(folder, result.stdout, result.stderr, result.exit_code)


@pytest.fixture(scope="module")
def unpacked(embedded: Exported, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """A bundle of it, unzipped."""
    folder = tmp_path_factory.mktemp("bundle")
    result = cli("bundle", embedded.folder, "-o", folder / "b.zip")
    assert result.exit_code == 0, result.stderr
    with zipfile.ZipFile(folder / "b.zip") as archive:
        archive.extractall(folder / "b")
    return next(path.parent for path in (folder / "b").rglob("verify.py"))


def verify(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bundle's own check, in a process that knows nothing of this package."""
    command = [sys.executable, "-I", str(folder / "verify.py"), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_export_passes(embedded: Exported) -> None:
    """Every held-out image is classified as PyTorch does, from bytes."""
    assert embedded.status == 0, embedded.stdout + embedded.stderr
    (report,) = json.loads((embedded.folder / "report.json").read_text("utf-8"))["artifacts"]
    assert report["accuracy"]["agreement"] == 1.0
    assert report["parity"]["weights"]["tensors"] == 88


def test_the_manifest_says_what_is_inside(embedded: Exported) -> None:
    """Manifest, golden arrays and the file itself agree on bytes in and probabilities out."""
    manifest = export_directory.read_manifest(embedded.folder)
    assert manifest.embedded == Embedded(preprocessing=True, softmax=True)
    (taken,), (given,) = manifest.signature.inputs, manifest.signature.outputs
    assert (taken.name, taken.dtype, given.name) == ("image", "uint8", "probabilities")
    golden, outputs = export_directory.read_golden(embedded.folder, manifest)
    assert golden.inputs.dtype == np.uint8
    assert set(golden.names) == set(golden.pixels)
    assert np.abs(outputs["probabilities"].sum(axis=1) - 1).max() < 1e-12
    (file,) = embedded.folder.rglob("*.onnx")
    said = {pair.key: pair.value for pair in onnx.load(file).metadata_props}
    assert json.loads(said["levit_export.embedded"]) == {"preprocessing": True, "softmax": True}


def test_a_plain_export_says_that_nothing_is_inside(exported: Exported) -> None:
    """The default has neither."""
    assert export_directory.read_manifest(exported.folder).embedded == Embedded()


@pytest.mark.parametrize("how", ["directory", "file"])
def test_check_passes(embedded: Exported, cli: Cli, how: str) -> None:
    """The file passes by its golden vectors, and as a bare file against the checkpoint."""
    (file,) = embedded.folder.rglob("*.onnx")
    bare = (file, "--model", "levit_digits")
    result = cli("check", *((embedded.folder,) if how == "directory" else bare))
    assert result.exit_code == 0, result.stdout + result.stderr


def test_bench_feeds_bytes(embedded: Exported, cli: Cli) -> None:
    """Timing gives the file what it takes."""
    result = cli("bench", embedded.folder, "--warmup", 1, "--iters", 2)
    assert result.exit_code == 0, result.stdout + result.stderr


def test_the_bundle_verifies_itself(unpacked: Path) -> None:
    """The bundle's verifier checks pixels and outputs with ONNX Runtime alone."""
    done = verify(unpacked, "--format", "onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "do not divide, subtract or normalise" in (unpacked / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [("none", "pass"), ("twice", "normalised, which the model does"), ("bgr", "BGR")],
)
def test_what_an_app_fed_is_told_from_what_it_should(
    unpacked: Path, tmp_path: Path, mistake: str, said: str
) -> None:
    """Normalising a second time and swapped channels are named."""
    cropped = np.load(unpacked / "golden" / "cropped" / "gradient.npy")
    fed = {
        "none": cropped,
        "twice": ((cropped / 255 - 0.5) / 0.5).astype(np.float32),
        "bgr": np.ascontiguousarray(cropped[..., ::-1]),
    }[mistake]
    np.save(tmp_path / "fed.npy", fed)
    done = verify(unpacked, "--input", str(tmp_path / "fed.npy"), "--sample", "gradient")
    assert done.returncode == (mistake != "none"), done.stdout + done.stderr
    assert said in done.stdout


def test_evaluate_feeds_bytes(embedded: Exported, cli: Cli, tmp_path: Path) -> None:
    """The file agrees with PyTorch on every image, and knows the digits."""
    folder = shutil.copytree(embedded.folder, tmp_path / "out")
    pixels, labels = held_out_digits()
    np.savez(tmp_path / "digits.npz", images=pixels[:20], labels=labels[:20])
    result = cli("evaluate", folder, "--data", tmp_path / "digits.npz", "--json", "-")
    assert result.exit_code == 0, result.stdout + result.stderr
    (found,) = json.loads(result.stdout)["artifacts"]
    assert (found["accuracy"]["agreement"], found["accuracy"]["images"]) == (1.0, 20)
    assert found["accuracy"]["correct"] == 20


def test_int8_is_refused(cli: Cli, tmp_path: Path) -> None:
    """A quantiser would be fed normalised images."""
    flags = ("--embed-preprocessing", "--precision", "int8", "--output", tmp_path / "out")
    result = cli("export", "--format", "onnx", *flags)
    assert result.exit_code == 2
    assert "w8" in result.stderr
    assert not (tmp_path / "out").exists()


def test_drift_says_that_it_wants_the_plain_export(embedded: Exported) -> None:
    """Drift feeds normalised tensors."""
    with pytest.raises(UsageError, match="normalises by itself"):
        trace(DriftRequest((embedded.folder,)))


def test_a_dry_run_says_what_would_be_inside(cli: Cli) -> None:
    """A dry run says what would be inside, and does nothing."""
    result = cli("export", "--embed-preprocessing", "--softmax", "--dry-run")
    assert result.exit_code == 0
    assert "raw RGB bytes in" in result.stdout
    assert "probabilities out" in result.stdout
