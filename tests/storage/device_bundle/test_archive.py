"""Bundles: their bytes, what is in them, and when none is made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import Cli
from tiny_exports import CLASSES, COREML, ONNX, OPENVINO, OUTPUTS, make_export

from levit_export.core import hashing
from levit_export.core.errors import BundleError, OutputError, UnknownNameError, UsageError
from levit_export.storage import device_bundle, export_directory
from levit_export.storage.device_bundle import contents, description
from levit_export.storage.device_bundle.web import library

ROOT = Path(__file__).resolve().parents[3]


def test_two_exports_give_the_same_bytes(tmp_path: Path) -> None:
    """A second export, in another folder at another time, is bundled byte for byte the same."""
    one = make_export(tmp_path / "one")
    other = make_export(tmp_path / "elsewhere" / "other")
    for path in other.rglob("*"):
        os.utime(path, (1e9, 1e9))
    first = device_bundle.write(one, tmp_path / "one.zip").read_bytes()
    assert device_bundle.write(other, tmp_path / "other.zip").read_bytes() == first


def test_source_date_epoch(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry has the date of ``SOURCE_DATE_EPOCH``, in UTC whatever the time zone."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    path = device_bundle.write(tiny, tmp_path / "dated.zip")
    with zipfile.ZipFile(path) as file:
        assert {info.date_time for info in file.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    device_bundle.write(tiny, path)
    with zipfile.ZipFile(path) as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("value", ["yesterday", "-1", "1.5", "99999999999", "1_0", "٣"])
def test_source_date_epoch_that_is_no_date(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """A date that a zip cannot say is refused with the value, and nothing is written."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is"):
        device_bundle.write(tiny, tmp_path / "dated.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("formats", [None, ("onnx",), ("openvino",), ("coreml",)])
def test_the_names_of_a_bundle_follow_from_its_manifest(
    tiny: Path, tmp_path: Path, formats: tuple[str, ...] | None
) -> None:
    """Which files a bundle may hold is known without it: all that it holds are among them."""
    page = dict.fromkeys(library.FILES, b"")
    has_page = formats is None or "onnx" in formats
    path = tmp_path / "b.zip"
    device_bundle.write(tiny, path, formats, library=page if has_page else None)
    with device_bundle.open_bundle(path) as folder:
        possible = contents.possible_names(export_directory.read_manifest(folder))
        held = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert held - possible == {*description.UNLISTED}
    assert "notes/README.txt" not in possible


def test_other_programs_read_it(zipped: Path) -> None:
    """It is an ordinary zip: stored entries in a fixed order, plain files, good checksums."""
    with zipfile.ZipFile(zipped) as file:
        assert file.testzip() is None
        infos = file.infolist()
    names = [info.filename for info in infos]
    assert names == ["bundle.json", "SHA256SUMS", *sorted(names[2:])]
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    assert {info.external_attr >> 16 for info in infos} == {0o100644}


def test_sums_list_every_file(unpacked: Path) -> None:
    """``SHA256SUMS`` names every file but itself, with its hash, as ``sha256sum -c`` reads it."""
    lines = (unpacked / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    present = {
        path.relative_to(unpacked).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in unpacked.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }
    assert listed == present


def test_description_holds_hash_and_size_of_every_file(unpacked: Path) -> None:
    """``bundle.json`` describes every file, the recipe in words and the recipe in numbers."""
    content = json.loads((unpacked / "bundle.json").read_text(encoding="utf-8"))
    for name, entry in content["files"].items():
        raw = (unpacked / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    assert "shorter side to 20 px" in content["preprocessing"]["words"]
    assert content["preprocessing"]["numbers"]["mean"] == [0.485, 0.456, 0.406]
    assert content["images"]["gradient"] == {"row": 9, "resized": False}
    assert content["images"]["real-1"] == {"row": 11, "resized": True}
    assert content["images"]["resize-landscape"] == {"row": None, "resized": True}


def test_what_a_bundle_unpacks_to_is_an_export(zipped: Path, tiny: Path) -> None:
    """An opened bundle is an undamaged export directory, gone when the block ends."""
    with device_bundle.open_bundle(zipped) as folder:
        manifest = export_directory.read_manifest(folder)
        assert export_directory.damage(folder, manifest) == []
        assert manifest == export_directory.read_manifest(tiny)
        assert (folder / ONNX).read_bytes() == (tiny / ONNX).read_bytes()
    assert not folder.exists()


def test_an_unpacked_bundle_is_bundled_again(zipped: Path, tmp_path: Path) -> None:
    """What was unpacked is an export like the first: bundled, it gives the first's bytes."""
    with device_bundle.open_bundle(zipped) as folder:
        again = device_bundle.write(folder, tmp_path / "again.zip")
    assert again.read_bytes() == zipped.read_bytes()


def test_formats(tiny: Path, tmp_path: Path) -> None:
    """Only the formats asked for are inside, and only their programs; the manifest says so."""
    path = device_bundle.write(tiny, tmp_path / "some.zip", ("openvino",))
    with device_bundle.open_bundle(path) as folder:
        manifest = export_directory.read_manifest(folder)
        assert [a.path for a in manifest.artifacts] == [OPENVINO]
        assert (folder / OPENVINO).with_suffix(".bin").is_file()
        assert not (folder / ONNX).exists()
        assert not (folder / COREML).exists()
        programs = {p.name for p in folder.iterdir() if p.name.startswith("verify")}
    assert programs == {"verify.py", "verify_openvino.cpp"}


def test_unknown_format(tiny: Path, tmp_path: Path) -> None:
    """A format that the export does not hold is refused with those that it does."""
    with pytest.raises(UnknownNameError, match="Did you mean 'onnx'"):
        device_bundle.write(tiny, tmp_path / "some.zip", ("onx",))


def test_failed_export(tmp_path: Path) -> None:
    """An export that failed is refused; when it is allowed, the bundle's README says it failed."""
    failed = make_export(tmp_path / "failed", verdicts={"onnx": "fail"})
    with pytest.raises(BundleError, match="failed its check: onnx-fp32"):
        device_bundle.write(failed, tmp_path / "f.zip")
    assert not (tmp_path / "f.zip").exists()
    with device_bundle.open_bundle(
        device_bundle.write(failed, tmp_path / "f.zip", allow_failed=True)
    ) as folder:
        assert "FAILED" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_format_that_failed_is_left_out(tmp_path: Path) -> None:
    """Formats that passed can be bundled without the one that failed."""
    failed = make_export(tmp_path / "failed", verdicts={"coreml": "fail"})
    with device_bundle.open_bundle(
        device_bundle.write(failed, tmp_path / "f.zip", ("onnx",))
    ) as folder:
        assert export_directory.read_manifest(folder).verdict == "pass"
        assert "FAILED" not in (folder / "README.md").read_text(encoding="utf-8")


def test_a_failure_that_no_artifact_explains(export: Path, tmp_path: Path) -> None:
    """An export that failed for another reason than an artifact is refused in every format."""
    content = json.loads((export / "manifest.json").read_text(encoding="utf-8"))
    content["verdict"] = "fail"
    (export / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match="failed its check"):
        device_bundle.write(export, tmp_path / "f.zip", ("onnx",))


def test_unchecked_export(tmp_path: Path) -> None:
    """An export whose check was not run is bundled, and its README says so."""
    unchecked = make_export(tmp_path / "unchecked", verdicts={"coreml": "not-run"})
    with device_bundle.open_bundle(device_bundle.write(unchecked, tmp_path / "f.zip")) as folder:
        assert "was not run" in (folder / "README.md").read_text(encoding="utf-8")


def test_damaged_export(export: Path, tmp_path: Path) -> None:
    """An export whose files are not as they were written is refused with the file's name."""
    (export / ONNX).write_bytes(b"x")
    with pytest.raises(BundleError, match=ONNX):
        device_bundle.write(export, tmp_path / "f.zip")


def test_golden_inputs_that_pixels_do_not_give(export: Path, tmp_path: Path) -> None:
    """An export whose golden inputs are not what the recipe makes of the pixels is refused."""
    inputs = np.load(export / "golden" / "input.npy")
    inputs[9] = inputs[9][::-1]
    np.save(export / "golden" / "input.npy", inputs)
    entry = hashing.file_entry(export / "golden" / "input.npy")
    content = json.loads((export / "manifest.json").read_text(encoding="utf-8"))
    content["files"]["golden/input.npy"] = vars(entry)
    (export / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match="golden input of gradient"):
        device_bundle.write(export, tmp_path / "f.zip")


def test_an_earlier_bundle_stays(export: Path, tmp_path: Path, zipped: Path) -> None:
    """When writing fails half way, the bundle that was there stays and nothing is left beside."""
    output = tmp_path / "out" / "b.zip"
    output.parent.mkdir()
    shutil.copy(zipped, output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("levit_export.storage.device_bundle.archive.SIZE_LIMIT", 100_000)
        with pytest.raises(BundleError, match="exceed"):
            device_bundle.write(export, output)
    assert output.read_bytes() == zipped.read_bytes()
    assert list(output.parent.iterdir()) == [output]
    device_bundle.write(export, output, ("onnx",))
    assert output.stat().st_size < zipped.stat().st_size


def test_places_that_are_refused(export: Path, tmp_path: Path) -> None:
    """A bundle is not put inside its export, and replaces neither folders nor other files."""
    with pytest.raises(OutputError, match="inside the export"):
        device_bundle.write(export, export / "b.zip")
    with pytest.raises(OutputError, match="is not a file"):
        device_bundle.write(export, tmp_path)
    other = tmp_path / "thesis.zip"
    other.write_bytes(b"PK\3\4 my thesis, and some more of it to fill a header" * 3)
    with pytest.raises(OutputError, match="is not a bundle"):
        device_bundle.write(export, other)
    assert other.read_bytes().startswith(b"PK\3\4 my thesis")


def test_images_are_the_pixels(unpacked: Path) -> None:
    """Each PNG decodes to the pixels of the array beside it."""
    found = sorted((unpacked / "golden" / "images").iterdir())
    assert len(found) == 10
    for path in found:
        pixels = np.load(unpacked / "golden" / "pixels" / f"{path.stem}.npy")
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)


def test_grey_png(tmp_path: Path) -> None:
    """A grey image of more than one deflate block is written as a grey PNG."""
    from levit_export.storage.device_bundle.golden import encode_png

    pixels = np.random.default_rng(0).integers(0, 256, (300, 400), dtype=np.uint8)
    (tmp_path / "grey.png").write_bytes(encode_png(pixels))
    with Image.open(tmp_path / "grey.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_allowances_are_the_manifests(unpacked: Path) -> None:
    """The arrays for C++ and Swift hold ``atol + rtol_i * max|reference_i|`` of the manifest."""
    manifest = export_directory.read_manifest(unpacked)
    for name in OUTPUTS:
        tolerance = manifest.golden.tolerances["fp32"][name]
        reference = np.load(unpacked / "golden" / f"{name}.npy")
        allowed = np.load(unpacked / "golden" / "allowed" / "fp32" / f"{name}.npy")
        np.testing.assert_array_equal(
            allowed, np.broadcast_to(tolerance.allowed(reference), len(reference))
        )


def test_model_card(unpacked: Path) -> None:
    """The card names formats, sizes, recipe, verdicts and tolerances, all from the manifest."""
    card = (unpacked / "README.md").read_text(encoding="utf-8")
    size = (unpacked / ONNX).stat().st_size
    assert f"| ONNX Runtime | fp32 | `{ONNX}` | {size:,} bytes | pass |" in card
    assert "shorter side to 20 px" in card
    assert "- input `input`: float32 [1, 3, 16, 16]" in card
    assert "| fp32 | `distill` |" in card
    assert "not stated" in (unpacked / "LICENCES.md").read_text(encoding="utf-8")


def renamed(export: Path, folder: Path) -> Path:
    """A copy of an export that holds its ONNX file as another precision, and nothing else."""
    manifest = export_directory.read_manifest(export)
    (entry,) = [each for each in manifest.artifacts if each.path == ONNX]
    other = replace(entry, precision="int8", path="onnx-int8/tiny.onnx")
    golden = replace(manifest.golden, tolerances={"int8": manifest.golden.tolerances["fp32"]})
    for name in manifest.files:
        if name == ONNX or name.startswith("golden/") or "/" not in name:
            place = folder / (other.path if name == ONNX else name)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(export / name, place)
    listed = export_directory.list_files(folder)
    found = replace(manifest, artifacts=(other,), golden=golden, files=listed)
    (folder / "manifest.json").write_text(export_directory.encode(found), encoding="utf-8")
    return folder


def test_exports_of_one_model_in_one_bundle(cli: Cli, export: Path, tmp_path: Path) -> None:
    """A bundle of two exports holds the artifacts of both and the tolerances of each."""
    other = renamed(export, tmp_path / "other")
    zipped = device_bundle.write(export, tmp_path / "b.zip", ("onnx",), beside=(other,))
    with device_bundle.open_bundle(zipped) as folder:
        manifest = export_directory.read_manifest(folder)
        assert [each.path for each in manifest.artifacts] == [ONNX, "onnx-int8/tiny.onnx"]
        assert (folder / "onnx-int8" / "tiny.onnx").read_bytes() == (export / ONNX).read_bytes()
        assert (folder / "golden" / "allowed" / "int8" / "logits.npy").is_file()
    result = cli("bundle", export, "-o", tmp_path / "c.zip", "-f", "onnx", "--beside", other)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "c.zip").read_bytes() == zipped.read_bytes()
    assert f"holds {ONNX}, onnx-int8/tiny.onnx" in result.stdout


def test_exports_that_do_not_belong_together(export: Path, tmp_path: Path) -> None:
    """Another model, other golden vectors, or one artifact twice are refused with the reason."""
    for number, (change, words) in enumerate(
        [
            (lambda m: m, f"both hold {COREML}"),
            (lambda m: replace(m, model=replace(m.model, name="other")), "differ in model"),
            (lambda m: replace(m, toolchain={"onnx": "0"}), "differ in toolchain"),
            (
                lambda m: replace(m, golden=replace(m.golden, doubt="x")),
                "differ in the golden doubt",
            ),
        ]
    ):
        other = shutil.copytree(export, tmp_path / str(number))
        manifest = change(export_directory.read_manifest(other))
        (other / "manifest.json").write_text(export_directory.encode(manifest), "utf-8")
        with pytest.raises(BundleError, match=words):
            device_bundle.write(export, tmp_path / "b.zip", beside=(other,))
    assert not (tmp_path / "b.zip").exists()


def card_of(export: Path, output: Path, *formats: str) -> tuple[str, Path]:
    """The card of a bundle of these formats, and the unpacked bundle."""
    folder = output.with_suffix("")
    shutil.unpack_archive(device_bundle.write(export, output, formats or None), folder, "zip")
    return (folder / "README.md").read_text(encoding="utf-8"), folder


def test_the_card_has_what_was_measured(export: Path, tmp_path: Path) -> None:
    """Error, accuracy and latency are those of the report, and where they were measured."""
    report = {
        "schema": 1,
        "machine": {"processor": "A | <b>CPU</b>"},
        "artifacts": [
            {
                "path": ONNX,
                "parity": {"max_rel": 2.5e-7},
                "accuracy": {"top1": 99.1666, "images": 360, "dataset": "held-out digits"},
                "timing": {"median_ms": 1.2345, "batch": 1, "threads": 2},
            },
            {"path": OPENVINO, "parity": {"max_rel": None}, "accuracy": None, "timing": "no"},
        ],
    }
    (export / "report.json").write_text(json.dumps(report), encoding="utf-8")
    card, _ = card_of(export, tmp_path / "b.zip")
    head = "| size | parity | largest relative error | top-1 | latency | runs on |"
    assert head in card
    assert "| pass | 2.5e-07 | 99.17 % | 1.23 ms (batch 1, 2 threads) |" in card
    assert f"| `{OPENVINO}` |" in card
    assert "| pass | – | – | – |" in card
    assert "(A bCPU/b): the largest difference" in card
    assert "top-1 on 360 images of held-out digits; median latency" in card
    plain, _ = card_of(export, tmp_path / "c.zip", "openvino")
    assert "| size | parity | runs on |" in plain


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 9}', '{"schema": 1, "artifacts": [3]}'])
def test_a_report_that_says_nothing(export: Path, tmp_path: Path, text: str) -> None:
    """A report that cannot be read leaves the figures out of the card, and nothing else."""
    (export / "report.json").write_text(text, encoding="utf-8")
    card, _ = card_of(export, tmp_path / "b.zip")
    assert "| size | parity | runs on |" in card


def test_what_the_hub_reads(export: Path, tmp_path: Path) -> None:
    """The card begins with YAML: licence, task, library and tags."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    card, _ = card_of(export, tmp_path / "b.zip", "onnx", "openvino")
    _, front, rest = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "other",
        "license_name": "not stated",
        "license_link": "LICENCES.md",
        "pipeline_tag": "image-classification",
        "library_name": "onnx",
        "tags": ["levit", "onnx", "openvino"],
    }
    assert rest.startswith("# tiny\n")


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_lines_of_python_run(export: Path, tmp_path: Path, kind: str) -> None:
    """What the card says to type gives PyTorch's answer for that picture."""
    card, folder = card_of(export, tmp_path / "b.zip", kind)
    (lines,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (name,) = re.findall(r"golden/images/(.*?)\.png", lines)
    described = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    row = described["images"][name]["row"]
    assert row is not None
    logits = np.load(folder / "golden" / "logits.npy")[row]
    assert done.stdout.strip() == CLASSES[logits.argmax()]


def test_the_lines_of_swift(export: Path, tmp_path: Path) -> None:
    """They are there for Core ML alone, and take only what the programs beside them have."""
    card, folder = card_of(export, tmp_path / "b.zip", "coreml")
    (lines,) = re.findall("```swift\n(.*?)```", card, re.DOTALL)
    programs = [folder / name for name in ("golden.swift", "verify.swift")]
    program = "".join(path.read_text(encoding="utf-8") for path in programs)
    assert COREML in lines
    for name in ("struct Golden", "func values", "func normalise", "func predict"):
        assert name in program
        assert f"{name.split()[1]}(" in lines
    (image,) = re.findall(r"cropped/(.*?)\.npy", lines)
    assert (folder / "golden" / "cropped" / f"{image}.npy").is_file()
    assert "```swift" not in card_of(export, tmp_path / "c.zip", "onnx")[0]


def test_licence_text_is_the_repositorys() -> None:
    """The licence that travels with the programs is the one in the repository."""
    copied = ROOT / "levit_export" / "storage" / "device_bundle" / "licences" / "Apache-2.0.txt"
    assert copied.read_bytes() == (ROOT / "LICENSE").read_bytes()
