"""What a bundle's verifiers report back from a device: answers and latencies, as a JSON file.

The schema stands in docs/bundle-format.md. Such a file comes from elsewhere, so that all of it is
doubted: its checksum, the types and ranges of its numbers, and which bundle it is about.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.core import files, serialisation
from levit_export.core.errors import DataError
from levit_export.storage.device_bundle.description import DESCRIPTION, HASH

FORMAT = "levit-export results"
SCHEMA = 1
CHECKSUM = re.compile(rb',\n"crc32": "([0-9a-f]{8})"\n\}\n\Z')
"""The last member of a file: the CRC-32 of every byte before this text."""

LARGEST_FILE = 2**27
MOST_ROWS = 256
MOST_AXES = 8
MOST_CHARACTERS = 400
"""Of a text that is shown to people."""


@dataclass(frozen=True)
class Output:
    """One output for every golden input; ``float32`` is base64 of little-endian numbers."""

    shape: tuple[int, ...]
    float32: str


@dataclass(frozen=True)
class Latency:
    """Seconds of calls with ``batch`` images, by regime.

    ``cold_s`` is from the start of loading to the first answer, ``first_s`` the first call of
    that; ``warm_s`` are calls after warming up, ``sustained_s`` all calls of a long run in a row.
    """

    batch: int
    threads: int
    cold_s: float
    first_s: float
    warm_s: tuple[float, ...]
    sustained_s: tuple[float, ...]


@dataclass(frozen=True)
class DeviceRow:
    """One artifact on one compute unit or provider. ``error`` is why there are no outputs."""

    artifact: str
    runtime: str
    unit: str
    error: str
    outputs: Mapping[str, Output]
    latency: Latency | None

    def arrays(self) -> dict[str, np.ndarray]:
        """Every output as float32, in the shape that the file says."""
        return {
            name: np.frombuffer(base64.b64decode(each.float32), "<f4").reshape(each.shape)
            for name, each in self.outputs.items()
        }


@dataclass(frozen=True)
class Results:
    """A results file: the SHA-256 of the bundle's ``bundle.json``, who measured, and the rows."""

    format: str
    schema: int
    bundle: str
    program: str
    device: str
    system: str
    rows: tuple[DeviceRow, ...]


def bundle_hash(folder: Path) -> str | None:
    """What results about the bundle in ``folder`` call it; None where there is no bundle."""
    try:
        return hashlib.sha256(files.read_bytes(folder / DESCRIPTION)).hexdigest()
    except OSError:
        return None


def read(path: Path) -> Results:
    """The results in the file ``path``.

    Raises ``DataError`` for a file that was altered or cut short, of another schema, or that says
    what no verifier can have measured.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise serialisation.MalformedError(f"is larger than {LARGEST_FILE >> 20} MiB")
        raw = files.read_bytes(path)
        # The schema first: another one may have another checksum.
        content = serialisation.parse(raw, SCHEMA)
        if content.get("format") != FORMAT:
            raise serialisation.MalformedError(f"does not have the format {FORMAT!r}")
        found = CHECKSUM.search(raw)
        if found is None or int(found[1], 16) != zlib.crc32(raw[: found.start()]):
            raise serialisation.MalformedError("was altered or cut short: its checksum is wrong")
        del content["crc32"]
        hooks = {str: _text, int: _integer, float: _number}
        results = serialisation.structure(content, Results, strict=True, hooks=hooks)
        _refuse_impossible(results)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be taken for results of a device: {error}",
            remedy="Give the file as the bundle's verifier wrote it with --results, copied byte "
            "for byte.",
        ) from error
    return results


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is expected, not {type(value).__name__}")
    return value


def _integer(value: Any, _: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"a whole number is expected, not {type(value).__name__}")
    return value


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"a number is expected, not {type(value).__name__}")
    return float(value)


def _refuse_impossible(results: Results) -> None:
    """Raise ``ValueError`` for what has the right types and cannot have been measured."""
    if not HASH.fullmatch(results.bundle):
        raise ValueError("it does not name its bundle by a SHA-256")
    if not 1 <= len(results.rows) <= MOST_ROWS:
        raise ValueError(f"it has {len(results.rows)} rows, 1 to {MOST_ROWS} are possible")
    shown = [results.program, results.device, results.system]
    for row in results.rows:
        shown += [row.artifact, row.runtime, row.unit, row.error or "none"]
    for text in shown:
        if not text.strip() or len(text) > MOST_CHARACTERS or not text.isprintable():
            raise ValueError(f"{text[:40]!r} is empty, too long or not printable")
    places = [(row.artifact, row.unit) for row in results.rows]
    if len(set(places)) < len(places):
        raise ValueError("an artifact has two rows on one unit")
    for row in results.rows:
        _refuse_impossible_row(row)


def _refuse_impossible_row(row: DeviceRow) -> None:
    where = f"the row of {row.artifact} on {row.unit}"
    if bool(row.error) == bool(row.outputs):
        raise ValueError(f"{where} needs either outputs or an error")
    for name, output in row.outputs.items():
        _refuse_impossible_output(f"{where} has the output {name[:40]!r}", output)
    if row.latency is not None:
        _refuse_impossible_latency(where, row.latency)


def _refuse_impossible_output(where: str, output: Output) -> None:
    if not 1 <= len(output.shape) <= MOST_AXES or min(output.shape) < 1:
        raise ValueError(f"{where} of the impossible shape {output.shape[: MOST_AXES + 1]}")
    try:
        held = len(base64.b64decode(output.float32, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where}, which is not base64") from error
    if held != 4 * math.prod(output.shape):
        raise ValueError(f"{where} of shape {output.shape} in {held} bytes")


def _refuse_impossible_latency(where: str, latency: Latency) -> None:
    if latency.batch < 1 or latency.threads < 0:
        raise ValueError(f"{where} was timed with batch {latency.batch}")
    if not latency.warm_s:
        raise ValueError(f"{where} has a latency without warm calls")
    seconds = (latency.cold_s, latency.first_s, *latency.warm_s, *latency.sustained_s)
    if not all(0 < value < math.inf for value in seconds):
        raise ValueError(f"{where} has a latency that is not a positive number")
    if latency.cold_s < latency.first_s:
        raise ValueError(f"{where} has first_s longer than cold_s, which includes it")
