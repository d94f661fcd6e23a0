"""A process that reads thousands of damaged checkpoints under limits and counts what came of it.

``python fuzzing.py FOLDER FIRST COUNT`` takes the files and folders in FOLDER, damages each in
COUNT ways and prints a JSON object: outcomes, and the peak of memory in MiB over the start. A
foreign exception ends it with status 1, a crash or an allocation beyond the limit with its own.
"""

from __future__ import annotations

import collections
import io
import json
import random
import resource
import shutil
import sys
import zipfile
from pathlib import Path

import hostile_files as hostile

from levit_export.core.errors import LevitExportError
from levit_export.models.checkpoints import reading

ADDED_MEMORY = 512 << 20
INTERESTING = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
OPCODES = b"(.0]})NRQbcstuqhrjJKMGX\x80\x81\x85\x86\x87\x88\x89\x8a\x93\x95"


def damaged(content: bytes, generator: random.Random) -> bytes:
    """``content`` with a few changes, most of them where files keep their structure."""
    array = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        near = min(generator.choice((32, 600, 4096, len(array))), len(array))
        at = generator.randrange(near) if near else 0
        at = generator.choice((at, max(len(array) - 1 - at, 0)))
        width = generator.choice((1, 2, 4, 8))
        order = generator.choice(("little", "big"))
        number = generator.choice(INTERESTING) % (1 << 8 * width)
        start = generator.randrange(max(len(array), 1))
        piece = {
            "number": number.to_bytes(width, order),
            "random": generator.randbytes(width),
            "opcode": bytes([generator.choice(OPCODES)]),
            "digit": str(generator.choice(INTERESTING)).encode(),
            "copy": bytes(array[start : start + generator.randint(1, 64)]),
            "bit": bytes([array[at] ^ (1 << generator.randrange(8))]) if at < len(array) else b"",
            "nothing": b"",
        }[generator.choice(("number", "random", "opcode", "digit", "copy", "bit", "nothing"))]
        length = generator.choice((0, len(piece), len(piece), 1, 8))
        array[at : at + length] = piece
    if generator.random() < 0.05:
        del array[generator.randrange(len(array) + 1) :]
    return bytes(array)


def outcome(path: Path) -> str:
    """How reading ends: the kind of error and its first words, without the file's name."""
    try:
        reading.read(path)
    except LevitExportError as error:
        if not error.remedy or not str(error).isprintable():
            raise AssertionError(ascii(str(error))) from error
        return type(error).__name__
    return "read"


def main() -> None:
    """Read the command line's files in all their damaged forms."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    here = folder / f"damaged-{first}"
    subjects = sorted(path for path in folder.iterdir() if not path.name.startswith("damaged"))
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + ADDED_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts: dict[str, collections.Counter[str]] = {}
    for subject in subjects:
        for seed in range(first, first + count):
            counts.setdefault(subject.name, collections.Counter())[_one(subject, here, seed)] += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    sys.stdout.write(json.dumps({"outcomes": counts, "grown": grown}))


def _one(subject: Path, here: Path, seed: int) -> str:
    generator = random.Random(f"{subject.name} {seed}")  # noqa: S311 - reproducible, no secret
    if subject.is_dir():
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(subject, here)
        victim = here / generator.choice(sorted(path.name for path in subject.iterdir()))
    else:
        victim = here.with_name(here.name + subject.suffix)
        victim.write_bytes(subject.read_bytes())
    content = victim.read_bytes()
    if content.startswith(b"PK") and generator.random() < 0.7:
        victim.write_bytes(_with_damaged_pickle(content, generator))
    else:
        victim.write_bytes(damaged(content, generator))
    try:
        return outcome(here if subject.is_dir() else victim)
    except BaseException as error:
        raise AssertionError(f"{subject.name}, seed {seed}") from error


def _with_damaged_pickle(content: bytes, generator: random.Random) -> bytes:
    """The archive packed anew, so that its check sums let the damage pass."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        program = archive.read(names.pop("data.pkl"))
        storages = {
            name.removeprefix("data/"): archive.read(full)
            for name, full in names.items()
            if name.startswith("data/")
        }
    return hostile.archive(damaged(program, generator), storages)


if __name__ == "__main__":
    main()
