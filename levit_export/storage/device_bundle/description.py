"""``bundle.json``: what a bundle holds, in the one spelling that is accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from levit_export.core.errors import BundleError
from levit_export.core.hashing import FileEntry
from levit_export.core.values import Preprocessing

FORMAT = "levit-export bundle"
SCHEMA = 1
DESCRIPTION = "bundle.json"
SUMS = "SHA256SUMS"
UNLISTED = (DESCRIPTION, SUMS)
"""They come first in the zip; the first cannot hold its own hash, nor the second the first's."""

HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ImageEntry:
    """A golden image. ``row`` is its place in the golden arrays, None where it only shows the
    preprocessing; ``resized`` whether the recipe resizes it or it has the model's size already.
    """

    row: int | None
    resized: bool


@dataclass(frozen=True)
class Description:
    """Every file but the two in :data:`UNLISTED`, every image, and the recipe."""

    files: Mapping[str, FileEntry]
    images: Mapping[str, ImageEntry]
    preprocessing: Preprocessing


def encode(description: Description) -> bytes:
    """Sorted and indented JSON."""
    recipe = description.preprocessing
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "files": {name: vars(entry) for name, entry in description.files.items()},
        "images": {name: vars(entry) for name, entry in description.images.items()},
        "preprocessing": {"words": recipe.in_words(), "numbers": asdict(recipe)},
    }
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def decode(raw: bytes) -> Description:
    """The description that ``raw`` spells. Raises ``BundleError`` for any other spelling of it.

    What was understood is encoded again and compared, so that no key is ignored, repeated or of a
    type that only looks right.
    """
    try:
        content = json.loads(raw)
        _refuse_schema(content)
        description = Description(
            {name: _file(entry) for name, entry in content["files"].items()},
            {name: _image(entry) for name, entry in content["images"].items()},
            _recipe(content["preprocessing"]["numbers"]),
        )
        is_canonical = encode(description) == raw
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _malformed(f"{type(error).__name__}: {str(error)[:200]}") from error
    if not is_canonical:
        raise _malformed("it says more than, or something else than, this version understands")
    return description


def _refuse_schema(content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _malformed(f"its format is not {FORMAT!r}")
    schema = content.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise BundleError(
            f"{DESCRIPTION} has schema {str(schema)[:40]}, this version reads {SCHEMA}",
            remedy="Use the version of levit-export that wrote the bundle.",
        )


def _file(entry: Any) -> FileEntry:
    digest, size = entry["sha256"], entry["bytes"]
    if not HASH.fullmatch(digest) or type(size) is not int or size < 0:
        raise ValueError(f"{entry!r} is no SHA-256 and size")
    return FileEntry(digest, size)


def _image(entry: Any) -> ImageEntry:
    row, resized = entry["row"], entry["resized"]
    if type(resized) is not bool or not (row is None or (type(row) is int and row >= 0)):
        raise ValueError(f"{entry!r} describes no image")
    return ImageEntry(row, resized)


def _recipe(numbers: Any) -> Preprocessing:
    import cattrs

    try:
        return cattrs.structure(numbers, Preprocessing)
    except Exception as error:
        raise ValueError(f"{str(numbers)[:80]} is no recipe") from error


def sums(files: Mapping[str, FileEntry]) -> bytes:
    """What ``sha256sum -c`` reads, one line a file, sorted by name."""
    lines = (f"{entry.sha256}  {name}\n" for name, entry in sorted(files.items()))
    return "".join(lines).encode()


def _malformed(detail: str) -> BundleError:
    return BundleError(
        f"{DESCRIPTION} does not describe a bundle: {detail}",
        remedy="Copy the bundle again, or make it anew with levit-export bundle.",
    )
