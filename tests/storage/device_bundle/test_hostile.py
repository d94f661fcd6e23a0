"""Bundles that nobody should open: each is refused, and nothing of it is written anywhere."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest

from levit_export.core.errors import BundleError
from levit_export.core.hashing import FileEntry, file_entry
from levit_export.storage import device_bundle
from levit_export.storage.device_bundle import archive, description
from levit_export.storage.device_bundle.golden import encode_array

Attack = Callable[[bytes], bytes]


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds a bundle and everything that opening it may write."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def refusal(sandbox: Path, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> BundleError:
    """The error of opening ``raw``, after which nothing may have been unpacked."""

    def unpacked(*_: object) -> None:
        pytest.fail("something was unpacked")

    monkeypatch.setattr(archive, "_extract", unpacked)
    (sandbox / "b.zip").write_bytes(raw)
    with pytest.raises(BundleError) as caught, device_bundle.open_bundle(sandbox / "b.zip"):
        pytest.fail("it was opened")
    assert sorted(path.name for path in sandbox.rglob("*")) == ["b.zip", "temporary"]
    return caught.value


def adding(name: str, content: bytes = b"evil") -> Attack:
    """A further file, described and summed as it should be."""
    return lambda raw: mutate.pack(mutate.vouched([*mutate.contents(raw), (name, content)]))


def replacing(name: str, change: Callable[[bytes], bytes]) -> Attack:
    """Another content of a file, described and summed as it should be."""

    def attack(raw: bytes) -> bytes:
        entries = [(n, change(c) if n == name else c) for n, c in mutate.contents(raw)]
        return mutate.pack(mutate.vouched(entries))

    return attack


def manifest(edit: Callable[[Any], object]) -> Attack:
    """An edited manifest with right hashes."""

    def change(raw: bytes) -> bytes:
        content = json.loads(raw)
        edit(content)
        return json.dumps(content).encode()

    return replacing("manifest.json", change)


def described(edit: Callable[[str], str]) -> Attack:
    """An edited ``bundle.json``, its hash in ``SHA256SUMS`` made right."""

    def attack(raw: bytes) -> bytes:
        entries = mutate.contents(raw)
        text = edit(entries[0][1].decode()).encode()
        files = {n: _entry(c) for n, c in entries[2:]}
        return mutate.pack([*mutate.summed(text, files), *entries[2:]])

    return attack


def _entry(content: bytes) -> FileEntry:
    return file_entry(content)


def entries(change: Callable[[mutate.Contents], mutate.Contents]) -> Attack:
    """Other entries beside descriptions that stay as they are."""
    return lambda raw: mutate.pack(change(mutate.contents(raw)))


def record(offset: int, form: str, value: int, *, twin: int | None = None) -> Attack:
    """A field of the third record in the directory, and of its local header where it has one."""

    def attack(raw: bytes) -> bytes:
        data = bytearray(raw)
        (at,) = struct.unpack_from("<I", raw, raw.rindex(b"PK\5\6") + 16)
        for _ in range(2):
            at += 46 + struct.unpack_from("<H", raw, at + 28)[0]
        (local,) = struct.unpack_from("<I", raw, at + 42)
        struct.pack_into(form, data, at + offset, value)
        if twin is not None:
            struct.pack_into(form, data, local + twin, value)
        return bytes(data)

    return attack


def end(offset: int, form: str, value: int) -> Attack:
    """A field of the record at the very end."""

    def attack(raw: bytes) -> bytes:
        data = bytearray(raw)
        struct.pack_into(form, data, len(raw) - 22 + offset, value)
        return bytes(data)

    return attack


def deflated(raw: bytes) -> bytes:
    """The same files, compressed, among them a bomb of 64 MiB in 64 KiB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in [*mutate.contents(raw), ("bomb", bytes(1 << 26))]:
            bomb.writestr(name, content)
    return file.getvalue()


def overlapping(raw: bytes) -> bytes:
    """A second record of the last entry, under another name of equal length."""
    at = raw.rindex(b"PK\1\2")
    last = bytearray(raw[at : len(raw) - 22])
    last[-1] ^= 1
    tail = bytearray(raw[-22:])
    count, _, size = struct.unpack_from("<2HI", tail, 8)
    struct.pack_into("<2HI", tail, 8, count + 1, count + 1, size + len(last))
    return raw[:-22] + bytes(last) + bytes(tail)


def hidden(raw: bytes) -> bytes:
    """Data between the last entry and the directory, which the end record leads past."""
    (start,) = struct.unpack_from("<I", raw, len(raw) - 6)
    moved = bytearray(raw[:start] + b"hidden" + raw[start:])
    struct.pack_into("<I", moved, len(moved) - 6, start + 6)
    return bytes(moved)


def promising(raw: bytes) -> bytes:
    """A comment that the last record announces and the directory has no room for."""
    data = bytearray(raw)
    struct.pack_into("<H", data, raw.rindex(b"PK\1\2") + 32, 8)
    return bytes(data)


ATTACKS: dict[str, tuple[Attack, str]] = {
    "nothing": (lambda _: b"", "has 0 bytes"),
    "no zip": (lambda _: bytes(1000), "does not end in a zip directory"),
    "truncated": (lambda raw: raw[:-1], "does not end in a zip directory"),
    "half": (lambda raw: raw[: len(raw) // 2], "does not end in a zip directory"),
    "data behind": (lambda raw: raw + b"x", "does not end in a zip directory"),
    "data before": (lambda raw: b"x" + raw, "directory in another place"),
    "comment": (lambda raw: raw[:-2] + b"\1\0x", "does not end in a zip directory"),
    "count": (end(10, "<H", 3), "says that it holds"),
    "counts": (end(8, "<I", 0xFFFFFFFF), "says that it holds 65535"),
    "disks": (end(4, "<H", 1), "disks"),
    "directory elsewhere": (end(16, "<I", 0), "directory in another place"),
    "traversal": (adding("../evil"), "component '..'"),
    "deep traversal": (adding("golden/../../evil"), "component '..'"),
    "absolute": (adding("/etc/evil"), "absolute"),
    "drive": (adding("C:/evil"), "not portable"),
    "backslash": (adding("..\\evil"), "not portable"),
    "NUL": (adding("evil\0.txt"), "not portable"),
    "right-to-left": (adding("evil\u202etxt"), "not portable"),
    "trailing dot": (adding("evil."), "ends in a dot"),
    "trailing space": (adding("evil "), "space"),
    "device": (adding("golden/NUL.txt"), "a device on Windows"),
    "empty component": (adding("golden//evil"), "component ''"),
    "folder": (adding("evil/"), "component ''"),
    "decomposed": (adding("e\u0301vil"), "composed form"),
    "long": (adding("e" * 256), "longer than 255"),
    "longest": (adding("/".join(["e" * 200] * 6)), "longer than"),
    "case": (adding("LABELS.txt"), "one file on some systems"),
    "compatible letters": (adding("la\uff42els.txt"), "one file on some"),
    "file as folder": (adding("labels.txt/evil"), "on some systems"),
    "folder's case": (adding("Golden/evil"), "on some systems"),
    "twice": (entries(lambda e: [*e, e[-1]]), "one file on some systems"),
    "not described": (entries(lambda e: [*e, ("zebra", b"")]), "zebra is not in bundle.json"),
    "missing": (entries(lambda e: e[:-1]), "verify_openvino.cpp is missing"),
    "no manifest": (
        entries(lambda e: [x for x in e if x[0] != "manifest.json"]),
        "manifest.json is missing",
    ),
    "order": (entries(lambda e: [*e[:2], e[3], e[2], *e[4:]]), "not in order"),
    "wrong hash": (
        entries(lambda e: [(n, b"0" + c[1:] if n == "labels.txt" else c) for n, c in e]),
        "labels.txt is not the file that bundle.json describes",
    ),
    "wrong sums": (
        entries(lambda e: [e[0], ("SHA256SUMS", b"0" + e[1][1][1:]), *e[2:]]),
        "SHA256SUMS does not list",
    ),
    "no sums": (entries(lambda e: [e[0], ("SHA256SUMS", b""), *e[2:]]), "SHA256SUMS does not"),
    "link": (record(38, "<I", (stat.S_IFLNK | 0o777) << 16), "a link"),
    "device file": (record(38, "<I", (stat.S_IFCHR | 0o666) << 16), "a device"),
    "set-uid": (record(38, "<I", (stat.S_IFREG | 0o4755) << 16), "another mode than 0644"),
    "encrypted": (record(8, "<H", 0x801, twin=6), "encrypted"),
    "method": (record(10, "<H", 8, twin=8), "compressed"),
    "compressed": (deflated, "compressed"),
    "Zip64": (record(24, "<I", 0xFFFFFFFF, twin=22), "compressed"),
    "crc": (record(16, "<I", 1, twin=14), "Bad CRC"),
    "crc in one place": (record(16, "<I", 1), "two different ways"),
    "second directory": (adding("zzPK\6\7" + 16 * "z"), "a second directory"),
    "extra field": (record(30, "<H", 4), "Corrupt extra field"),
    "entry comment": (record(32, "<H", 4), "Bad magic number"),
    "another place": (record(42, "<I", 0), "overlaps another or leaves a gap"),
    "overlap": (overlapping, "overlaps another or leaves a gap"),
    "data between": (hidden, "other data than its entries"),
    "comment beyond the directory": (promising, "has a comment or extra fields"),
    "another date": (record(12, "<I", 0, twin=10), "another date"),
    "name length": (record(28, "<H", 0xFFFF), "has other flags"),
    "schema 2": (described(lambda t: t.replace('"schema": 1', '"schema": 2')), "schema 2"),
    "schema true": (
        described(lambda t: t.replace('"schema": 1', '"schema": true')),
        "schema True",
    ),
    "no schema": (described(lambda t: t.replace('"schema": 1', '"scheme": 1')), "schema None"),
    "format": (described(lambda t: t.replace("levit-export bundle", "thing")), "its format"),
    "a list": (described(lambda _: "[]"), "not a JSON object"),
    "not JSON": (described(lambda _: "{"), "is not JSON"),
    "deep JSON": (described(lambda _: "[" * 100_000), "is not JSON"),
    "key twice": (
        described(lambda t: t.replace('"schema": 1', '"schema": 1,\n "schema": 1')),
        "something else",
    ),
    "further key": (
        described(lambda t: t.replace('"schema": 1', '"schema": 1,\n "x": 1')),
        "something else",
    ),
    "other words": (described(lambda t: t.replace("; NCHW", "; NHWC")), "something else"),
    "size as text": (
        described(lambda t: t.replace('"bytes": 16', '"bytes": "16"')),
        "something else",
    ),
    "recipe": (
        described(lambda t: t.replace('"crop": [', '"crop": ["x",')),
        "does not describe a bundle",
    ),
    "negative row": (described(lambda t: t.replace('"row": 9', '"row": -9')), "has the row -9"),
    "image with no files": (
        described(lambda t: t.replace('"real-1": {', '"real-9": {')),
        "golden/cropped/real-9.npy is missing",
    ),
    "manifest: not JSON": (replacing("manifest.json", lambda _: b"{"), "not JSON"),
    "manifest: schema": (manifest(lambda m: m.update(schema=99)), "schema 99"),
    "manifest: path": (
        manifest(lambda m: m["artifacts"][0].update(path="../../etc")),
        "outside the directory",
    ),
    "manifest: pixels": (
        manifest(lambda m: m["golden"]["pixels"].append("../../../etc/passwd")),
        "golden/pixels/../../../etc/passwd.npy is missing",
    ),
    "manifest: file": (
        manifest(lambda m: m["files"]["labels.txt"].update(bytes=1)),
        "disagree on labels.txt",
    ),
    "manifest: recipe": (
        manifest(lambda m: m["model"]["preprocessing"].update(crop=[17, 17])),
        "disagree on the preprocessing",
    ),
    "array that is none": (adding("golden/x.npy"), "golden/x.npy is not an array"),
    "array of objects": (
        adding("golden/x.npy", encode_array(np.zeros(4)).replace(b"<f8", b"|O8")),
        "is not an array",
    ),
    "array that promises more": (
        adding("golden/x.npy", encode_array(np.zeros(4)).replace(b"(4,), }   ", b"(4000,), }")),
        "is not an array",
    ),
}


@pytest.mark.parametrize(("attack", "message"), ATTACKS.values(), ids=ATTACKS)
def test_attack(
    zipped: Path,
    sandbox: Path,
    monkeypatch: pytest.MonkeyPatch,
    attack: Attack,
    message: str,
) -> None:
    """The bundle is refused for what is wrong with it, before anything is unpacked."""
    raw = zipped.read_bytes()
    assert attack(raw) != raw
    error = refusal(sandbox, attack(raw), monkeypatch)
    # The folder's name holds the test's, which would match some of the messages.
    assert error.what.startswith(str(sandbox))
    assert message in error.what.replace(str(sandbox), "")
    assert error.remedy


def test_what_is_packed_again_rightly_is_opened(zipped: Path, sandbox: Path) -> None:
    """The tools of these attacks by themselves do no harm: packed again, the bundle is opened."""
    path = sandbox / "b.zip"
    path.write_bytes(mutate.pack(mutate.vouched(mutate.contents(zipped.read_bytes()))))
    with device_bundle.open_bundle(path) as folder:
        assert (folder / "verify.py").is_file()


def test_a_bundle_that_changes_while_it_is_read(
    zipped: Path, sandbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are hashed again as they are unpacked; what was unpacked before is gone."""
    raw = bytearray(zipped.read_bytes())
    path = sandbox / "b.zip"
    path.write_bytes(raw)
    examine = archive._examine

    def then_change(file: Any) -> Any:
        examined = examine(file)
        at = raw.rindex(b"verify", 0, raw.index(b"PK\1\2"))
        raw[at] ^= 1
        with path.open("r+b") as other:
            other.write(raw)
        return examined

    monkeypatch.setattr(archive, "_examine", then_change)
    with (
        pytest.raises(BundleError, match=r"Bad CRC|changed while"),
        device_bundle.open_bundle(path),
    ):
        pytest.fail("it was opened")
    assert sorted(p.name for p in sandbox.rglob("*")) == ["b.zip", "temporary"]


@pytest.mark.parametrize("kind", ["nowhere", "folder", "pipe"])
def test_what_is_no_file(sandbox: Path, kind: str) -> None:
    """A path that is no file is refused with its name, and a pipe is not waited for."""
    path = sandbox / "b.zip"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(BundleError, match=r"b\.zip"), device_bundle.open_bundle(path):
        pytest.fail("it was opened")


def test_portable_names() -> None:
    """Ordinary names pass, in any script; two names clash where a system takes them for one."""
    good = ["README.md", "a b/c-d_e+f.tar.gz", "модель/模型.onnx", ".hidden", "console", "com10"]
    assert [description.name_problem(name) for name in good] == [""] * len(good)
    assert list(description.name_clashes(good)) == []
    assert len(list(description.name_clashes(["straße", "STRASSE"]))) == 1


def test_mutants(zipped: Path, sandbox: Path) -> None:
    """Damage at random raises errors of this package alone and leaves nothing behind.

    What is accepted holds what it says. No altered byte and no record that lies is ever accepted.
    """
    outcomes = mutate.run(zipped.read_bytes(), 300, sandbox)
    assert sum(outcomes.values()) == 300
    assert outcomes["altered_bytes: accepted"] == 0
    assert outcomes["lying_records: accepted"] == 0
    assert outcomes["malicious: BundleError"] > 50
