"""Which file names a bundle may hold: those that mean the same file on every system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

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


def problem(name: str) -> str:
    """Why ``name`` is not a portable relative POSIX path, or empty."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not Unicode"
    reasons = {
        "is empty or absolute": not name or name.startswith("/"),
        "has a character that is not portable": FORBIDDEN.search(name),
        f"is longer than {NAME_BYTES} bytes": size > NAME_BYTES,
        "is not in Unicode's composed form": unicodedata.normalize("NFC", name) != name,
    }
    found = (reason for reason, holds in reasons.items() if holds)
    return next(found, "") or next(filter(None, map(_part_problem, name.split("/"))), "")


def _part_problem(part: str) -> str:
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


def clashes(names: Iterable[str]) -> Iterator[str]:
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
