"""The export directory's description: written, read back, and refused when it is damaged."""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Exported

from levit_export.core import hashing
from levit_export.core.errors import DataError, LevitExportError, ManifestError
from levit_export.storage import export_directory

FUZZ = settings(
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_manifest_survives_writing(exported: Exported, tmp_path: Path) -> None:
    """A manifest that was written and read again is equal, and is written to the same bytes."""
    manifest = export_directory.read_manifest(exported.folder)
    export_directory.write_manifest(tmp_path, manifest)
    assert export_directory.read_manifest(tmp_path) == manifest
    written = (exported.folder / "manifest.json").read_bytes()
    assert (tmp_path / "manifest.json").read_bytes() == written


def test_numbers_and_words_stay_what_they_are(exported: Exported) -> None:
    """The derivation of a tolerance holds numbers and words; neither is turned into the other."""
    tolerances = export_directory.read_manifest(exported.folder).golden.tolerances["fp32"]
    derivation = tolerances["logits"].derivation
    assert derivation["precision"] == "fp32"
    assert derivation["false_alarm"] == 1e-6
    assert derivation["compared"] == 260.0


def test_manifest_vouches_for_every_file(exported: Exported) -> None:
    """Every file but the manifest and the reports is listed with its hash and size."""
    manifest = export_directory.read_manifest(exported.folder)
    found = {
        path.relative_to(exported.folder).as_posix()
        for path in exported.folder.rglob("*")
        if path.is_file()
    }
    assert set(manifest.files) == found - {"manifest.json", "report.json", "report.html"}
    assert manifest.files == export_directory.list_files(exported.folder)
    assert manifest.artifacts[0].path in manifest.files


def test_manifest_knows_neither_time_nor_place(exported: Exported) -> None:
    """The manifest holds no absolute path, no latency and no date."""
    text = (exported.folder / "manifest.json").read_text(encoding="utf-8")
    assert str(exported.folder) not in text
    assert str(Path.home()) not in text
    assert not {"seconds", "median_ms", "date", "time", "machine"} & set(json.loads(text))


def test_no_damage(exported: Exported) -> None:
    """A directory as it was written shows no damage."""
    manifest = export_directory.read_manifest(exported.folder)
    assert export_directory.damage(exported.folder, manifest) == []


def test_damage(copied: Path) -> None:
    """Missing, altered and lengthened files are each reported by name; the report may change."""
    manifest = export_directory.read_manifest(copied)
    (copied / "report.json").unlink()
    (copied / "labels.txt").unlink()
    logits = copied / "golden" / "logits.npy"
    logits.write_bytes(logits.read_bytes()[:-1] + b"\x55")
    with (copied / "golden" / "input.npy").open("ab") as file:
        file.write(b"x")
    found = sorted(export_directory.damage(copied, manifest))
    assert [line.split()[0] for line in found] == [
        "golden/input.npy",
        "golden/logits.npy",
        "labels.txt",
    ]
    assert found[2] == "labels.txt is missing"
    assert str(manifest.files["golden/input.npy"].bytes + 1) in found[0]


def test_artifacts_have_their_place(exported: Exported) -> None:
    """Artifacts are given with full paths and the signature of the model."""
    manifest = export_directory.read_manifest(exported.folder)
    (artifact,) = export_directory.artifacts(exported.folder, manifest)
    assert artifact.path.is_file()
    assert (artifact.id, artifact.signature) == ("onnx-fp32", manifest.signature)


def test_golden_vectors(exported: Exported) -> None:
    """Golden inputs, outputs, labels and pixels are read back in one order."""
    manifest = export_directory.read_manifest(exported.folder)
    samples, outputs = export_directory.read_golden(exported.folder, manifest)
    assert samples.inputs.shape == (len(samples), 3, 96, 96)
    assert outputs["logits"].shape == (len(samples), 10)
    assert set(samples.pixels) <= set(samples.names)
    real = samples.labels >= 0
    np.testing.assert_array_equal(outputs["logits"][real].argmax(1), samples.labels[real])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a broken archive", b"\x93NUMPY\x01\x00"])
def test_damaged_golden_vectors(copied: Path, content: bytes) -> None:
    """Golden vectors that cannot be read are a DataError with a remedy."""
    (copied / "golden" / "input.npy").write_bytes(content)
    with pytest.raises(DataError, match="golden vectors") as raised:
        export_directory.read_golden(copied, export_directory.read_manifest(copied))
    assert raised.value.remedy


def test_too_few_golden_vectors(copied: Path) -> None:
    """Names and rows of the golden vectors that do not pair up are a DataError."""
    manifest = export_directory.read_manifest(copied)
    golden = replace(manifest.golden, samples=manifest.golden.samples[1:])
    with pytest.raises(DataError, match="25 names, 26 inputs"):
        export_directory.read_golden(copied, replace(manifest, golden=golden))


def test_missing_manifest(tmp_path: Path) -> None:
    """A folder without a manifest is a ManifestError that names the file."""
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        export_directory.read_manifest(tmp_path)


def test_deep_manifest(tmp_path: Path) -> None:
    """A manifest nested deeper than Python recurses is a ManifestError, no crash."""
    (tmp_path / "manifest.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ManifestError):
        export_directory.read_manifest(tmp_path)


@pytest.mark.parametrize("digest_of", [1, 2])
def test_digest(tmp_path: Path, digest_of: int) -> None:
    """An artifact of one file has that file's hash; one of several depends on each of them."""
    files = [tmp_path / name for name in ("a.xml", "b.bin")[:digest_of]]
    for file in files:
        file.write_text(file.name, encoding="utf-8")
    before = hashing.digest(files)
    assert before.bytes == 5 * digest_of
    assert (before == hashing.file_entry(files[0])) == (digest_of == 1)
    files[-1].write_text("other", encoding="utf-8")
    assert hashing.digest(files) != before


@FUZZ
@given(st.integers(0, 2**32))
def test_mutated_bytes(exported: Exported, tmp_path: Path, seed: int) -> None:
    """A manifest whose bytes were replaced, removed or repeated is read, or refused on purpose."""
    generator = random.Random(seed)  # noqa: S311 - reproducible, no secret
    content = bytearray((exported.folder / "manifest.json").read_bytes())
    for _ in range(generator.randint(1, 8)):
        at = generator.randrange(len(content))
        until = at + generator.choice((1, 1, 1, 20))
        kept = content[at:until]
        some = bytes(generator.choices(b'{}[]",:.-+eE019nulltrue\\/\xff\x00', k=1))
        content[at:until] = generator.choice((b"", some, some, kept + kept))
    (tmp_path / "manifest.json").write_bytes(content)
    with contextlib.suppress(LevitExportError):
        assert isinstance(export_directory.read_manifest(tmp_path), export_directory.Manifest)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@FUZZ
@given(value=VALUES, seed=st.integers(0, 2**32))
def test_mutated_values(exported: Exported, value: object, seed: int) -> None:
    """Any value of the manifest replaced by any other: understood, or refused on purpose."""
    content = json.loads((exported.folder / "manifest.json").read_text(encoding="utf-8"))
    generator = random.Random(seed)  # noqa: S311 - reproducible, no secret
    place: object = content
    while isinstance(place, dict | list) and place:
        key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]  # type: ignore[index]
        if not isinstance(inner, dict | list) or not inner or generator.random() < 0.3:
            place[key] = value  # type: ignore[index]
            break
        place = inner
    with contextlib.suppress(LevitExportError):
        manifest = export_directory.decode(json.dumps(content), Path("manifest.json"))
        assert isinstance(manifest, export_directory.Manifest)


def test_files_of_one_name_in_a_package_are_told_apart(tmp_path: Path) -> None:
    """The digest of a package counts every file of it, whatever their names."""
    for folder, content in (("a", b"one"), ("b", b"three")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weight.bin").write_bytes(content)
    both = [tmp_path / "a" / "weight.bin", tmp_path / "b" / "weight.bin"]
    found = hashing.digest(both)
    assert found.bytes == 8
    both[0].write_bytes(b"two")
    assert hashing.digest(both).sha256 != found.sha256
