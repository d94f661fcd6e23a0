"""Damage bundles at random; by hand: ``python …/device_bundle/mutate.py BUNDLE.zip 10000``.

A third of the mutants are altered bytes; a third are zips whose records lie; a third are whole
zips with right hashes whose names or descriptions were altered, as somebody would who means harm.
"""

from __future__ import annotations

import io
import json
import random
import stat
import struct
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from levit_export.core.errors import LevitExportError
from levit_export.core.hashing import FileEntry
from levit_export.storage.device_bundle import archive, description

Contents = list[tuple[str, bytes]]
NAMES = (
    *("../evil", "/evil", "a/../../evil", "C:/evil", "..\\evil", "evil\0.txt", "evil.", "evil "),
    *(
        "con",
        "nul.txt",
        "a//evil",
        "a/./evil",
        "LABELS.TXT",
        "labels.txt/evil",
        "",
        ".",
        "..",
        "e" * 300,
    ),
    *(
        "manifest.json",
        "golden",
        "golden/input.npy",
        "e\u0301vil",
        "ev\u202eil",
        "~/evil",
        "evil/",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), "", "x", "../x", "/x"),
    *([], {}, [[]], {"": ""}, "\ud800", "x" * 1000, [1] * 50, "float32", "uint8"),
)
NUMBERS = (0, 1, 2, 8, 12, 14, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

FIELDS = (
    *((8, 2, 6), (10, 2, 8), (12, 4, 10), (16, 4, 14), (20, 4, 18), (24, 4, 22), (28, 2, 26)),
    *((30, 2, 28), (32, 2, 0), (34, 2, 0), (36, 2, 0), (38, 4, 0), (42, 4, 0), (4, 2, 0)),
)
"""Offset and width of a directory record's fields, and their offset in the local header if any."""


def contents(raw: bytes) -> Contents:
    """Names and bytes of every entry, in order."""
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return [(info.filename, file.read(info)) for info in file.infolist()]


def pack(entries: Sequence[tuple[str, bytes]]) -> bytes:
    """A well-formed zip of ``entries`` in the form of bundles, whatever their names are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is, where the constructor would cut it at a NUL
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            zipped.writestr(info, content)
    return file.getvalue()


def vouched(entries: Contents) -> Contents:
    """``entries`` with both descriptions made anew, so that every hash is right."""
    rest = {name: content for name, content in entries if name not in description.UNLISTED}
    described = description.decode(dict(entries)[description.DESCRIPTION])
    files = {name: FileEntry(sha256(c).hexdigest(), len(c)) for name, c in rest.items()}
    text = description.encode(replace(described, files=files))
    return [*summed(text, files), *((name, rest[name]) for name in sorted(rest))]


def summed(text: bytes, files: dict[str, FileEntry]) -> Contents:
    """The first two entries for this text of ``bundle.json``."""
    entry = FileEntry(sha256(text).hexdigest(), len(text))
    sums = description.sums({**files, description.DESCRIPTION: entry})
    return [(description.DESCRIPTION, text), (description.SUMS, sums)]


def altered_bytes(raw: bytes, chance: random.Random) -> bytes:
    """Flipped, cut, repeated, moved or overwritten bytes, more of them in the directory."""
    data = bytearray(raw)
    directory = raw.rindex(b"PK\5\6")
    (start,) = struct.unpack_from("<I", raw, directory + 16)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        low = chance.choice((0, start, max(len(data) - 22, 0)))
        at = chance.randrange(min(low, len(data) - 1), len(data))
        length = chance.choice((1, 2, 4, 22, 46, 1000))
        kind = chance.randrange(6)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length] or b"x"
        elif kind == 3:
            data[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS))
        elif kind == 4:
            data[at : at + 2] = struct.pack("<H", chance.choice(NUMBERS) & 0xFFFF)
        else:
            data = data[:at] or bytearray(b"P")
    return bytes(data)


def lying_records(raw: bytes, chance: random.Random) -> bytes:
    """One field of one record in the directory changed, sometimes in its local header too."""
    data = bytearray(raw)
    end = raw.rindex(b"PK\5\6")
    (start,) = struct.unpack_from("<I", raw, end + 16)
    places = []
    while start < end:
        places.append(start)
        start += 46 + struct.unpack_from("<H", raw, start + 28)[0]
    at = chance.choice(places)
    (local,) = struct.unpack_from("<I", raw, at + 42)
    field, width, twin = chance.choice(FIELDS)
    value = chance.choice((*NUMBERS, chance.randrange(2**32))) & (256**width - 1)
    data[at + field : at + field + width] = value.to_bytes(width, "little")
    if twin and chance.random() < 0.5:
        data[local + twin : local + twin + width] = value.to_bytes(width, "little")
    return bytes(data)


def malicious(raw: bytes, chance: random.Random) -> bytes:
    """A well-formed zip with right sums whose names or descriptions are not as they should be."""
    entries = contents(raw)
    kind = chance.randrange(5)
    if kind == 0:
        entries[chance.randrange(2, len(entries))] = (chance.choice(NAMES), b"evil")
    elif kind == 1:
        entries.append((chance.choice(NAMES), b"evil"))
    elif kind == 2:
        del entries[chance.randrange(2, len(entries))]
    elif kind == 3:
        at = chance.randrange(2, len(entries))
        name, content = entries[at]
        entries[at] = (name, altered_text(name, content, chance))
    else:
        entries[0] = ("bundle.json", altered_text("bundle.json", entries[0][1], chance))
        files = {n: FileEntry(sha256(c).hexdigest(), len(c)) for n, c in entries[2:]}
        return pack([*summed(entries[0][1], files), *entries[2:]])
    try:
        return pack(vouched(entries))
    except (UnicodeEncodeError, KeyError, struct.error):
        return pack(entries)


def altered_text(name: str, content: bytes, chance: random.Random) -> bytes:
    """JSON with one value changed; other files with bytes changed."""
    if not name.endswith(".json"):
        data = bytearray(content or b"x")
        for _ in range(3):
            data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
        return bytes(data)
    tree = json.loads(content)
    node: Any = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = chance.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.8:
            node = node[key]
            continue
        if chance.random() < 0.2:
            del node[key]
        else:
            node[key] = chance.choice(VALUES)
        break
    text = json.dumps(tree, indent=1, sort_keys=True)
    return text.encode()


KINDS = (altered_bytes, lying_records, malicious)


def judge(path: Path, raw: bytes, mutant: bytes) -> str:
    """Open ``mutant`` as a bundle; what came of it. Raises whatever is no error of ours.

    What is accepted must be what it says: every file with the hash that its description gives.
    """
    path.write_bytes(mutant)
    try:
        with archive.open_bundle(path) as folder:
            files = description.decode((folder / description.DESCRIPTION).read_bytes()).files
            for name, entry in files.items():
                content = (folder / name).read_bytes()
                assert FileEntry(sha256(content).hexdigest(), len(content)) == entry, name
            present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
            assert present == {*files, *description.UNLISTED}
    except LevitExportError as error:
        return type(error).__name__
    return "unchanged" if mutant == raw else "accepted"


def run(raw: bytes, count: int, sandbox: Path, seed: int = 0) -> Counter[str]:
    """Judge ``count`` mutants. Fails when anything is written that is not gone afterwards."""
    chance = random.Random(seed)  # noqa: S311 - nothing here is secret
    path = sandbox / "mutant.zip"
    outcomes: Counter[str] = Counter()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        outcomes[f"{kind.__name__}: {judge(path, raw, kind(raw, chance))}"] += 1
        left = sorted(p.name for p in sandbox.rglob("*"))
        assert left == ["mutant.zip", "temporary"], left
    return outcomes


def main() -> None:
    """Run by hand; says what came of the mutants and how much memory it took."""
    import resource

    raw = Path(sys.argv[1]).read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Path(folder)
        (sandbox / "temporary").mkdir()
        tempfile.tempdir = str(sandbox / "temporary")
        outcomes = run(raw, int(sys.argv[2]), sandbox)
        tempfile.tempdir = None
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, number in sorted(outcomes.items()):
        sys.stdout.write(f"{number:7} {name}\n")
    sys.stdout.write(f"peak memory {before // 1024} MiB before, {after // 1024} MiB after\n")


if __name__ == "__main__":
    main()
