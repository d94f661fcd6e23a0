"""``bundle.json``: what a bundle holds, in the one spelling that is accepted.

Which names its files may have is said here too: those that mean the same file on every system.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from levit_export.core import serialisation
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

COMPONENT_BYTES = 255
NAME_BYTES = 1024
FORBIDDEN = re.compile(
    r'[\x00-\x1f\x7f-\x9f\\:*?"<>|\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]'
)
"""Control and direction characters, the other separator, and what Windows keeps for itself."""

DEVICES = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE
)
"""What Windows opens as a device whatever follows the dot."""


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
        "files": description.files,
        "images": description.images,
        "preprocessing": {"words": recipe.in_words(), "numbers": recipe},
    }
    return serialisation.to_text(content, canonical=True).encode()


def decode(raw: bytes) -> Description:
    """The description that ``raw`` spells. Raises ``BundleError`` for any other spelling of it.

    What was understood is encoded again and compared, so that no key is ignored, repeated or of a
    type that only looks right.
    """
    try:
        content = serialisation.parse(raw, SCHEMA)
        if content.get("format") != FORMAT:
            raise _malformed(f"its format is not {FORMAT!r}")
        known = {
            "files": content["files"],
            "images": content["images"],
            "preprocessing": content["preprocessing"]["numbers"],
        }
        description = serialisation.structure(known, Description, strict=True)
        is_canonical = encode(description) == raw
    except serialisation.OtherSchemaError as error:
        raise BundleError(
            f"{DESCRIPTION} {error}",
            remedy="Use the version of levit-export that wrote the bundle.",
        ) from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _malformed(f"{type(error).__name__}: {str(error)[:200]}") from error
    if not is_canonical:
        raise _malformed("it says more than, or something else than, this version understands")
    for name, file in description.files.items():
        if not HASH.fullmatch(file.sha256) or file.bytes < 0:
            raise _malformed(f"{name} does not have a SHA-256 and a size")
    for name, image in description.images.items():
        if image.row is not None and image.row < 0:
            raise _malformed(f"the image {name} has the row {image.row}")
    return description


def sums(files: Mapping[str, FileEntry]) -> bytes:
    """What ``sha256sum -c`` reads, one line a file, sorted by name."""
    lines = (f"{entry.sha256}  {name}\n" for name, entry in sorted(files.items()))
    return "".join(lines).encode()


def _malformed(detail: str) -> BundleError:
    return BundleError(
        f"{DESCRIPTION} does not describe a bundle: {detail}",
        remedy="Copy the bundle again, or make it anew with levit-export bundle.",
    )


def name_problem(name: str) -> str:
    """Why ``name`` is not a portable relative POSIX path, or empty."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not Unicode"
    if not name or name.startswith("/"):
        return "is empty or absolute"
    if FORBIDDEN.search(name):
        return "has a character that is not portable"
    if size > NAME_BYTES:
        return f"is longer than {NAME_BYTES} bytes"
    if unicodedata.normalize("NFC", name) != name:
        return "is not in Unicode's composed form"
    return next(filter(None, map(_component_problem, name.split("/"))), "")


def _component_problem(part: str) -> str:
    """The same of what stands between two slashes."""
    if part in {"", ".", ".."}:
        return f"has the component {part!r}"
    if part != part.strip(" ") or part.endswith("."):
        return "has a component that starts or ends in a space, or ends in a dot"
    if DEVICES.fullmatch(part):
        return f"has the component {part!r}, a device on Windows"
    if len(part.encode()) > COMPONENT_BYTES:
        return f"has a component longer than {COMPONENT_BYTES} bytes"
    return ""


def name_clashes(names: Iterable[str]) -> Iterator[str]:
    """Names that some system takes for another of ``names``, or for its folder."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        key = _key(name)
        if key in seen or key in folders:
            yield f"{name!r} and {seen.get(key) or folders[key]!r} are one file on some systems"
        seen[key] = name
        parts = name.split("/")
        for length in range(1, len(parts)):
            folder = "/".join(parts[:length])
            other = folders.setdefault(_key(folder), folder)
            if other != folder or _key(folder) in seen:
                yield f"{name!r} lies in a folder that is another entry on some systems"


def _key(name: str) -> str:
    """What a file system that ignores case makes of ``name``."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold())
