"""Write a directory whole or not at all."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from levit_export.core import files
from levit_export.core.errors import OutputError

MANIFEST = "manifest.json"
REPORTS = ("report.json", "report.html")
"""Files of measurements, which no manifest describes."""

SHOWN = 5
_PARTIAL = ".partial-"
_OLD = "-old"


@dataclass(frozen=True)
class Stage:
    """A directory that is being filled; ``commit`` puts it in its place."""

    path: Path

    def commit(self, final: Path) -> None:
        """Take the place of ``final``, which must lie beside the stage, in one step."""
        refuse_foreign(final)
        self.path.chmod(0o777 & ~files.umask())
        _take_place(self.path, final.absolute())


@contextmanager
def staged(final: Path) -> Iterator[Stage]:
    """A new directory beside ``final`` to fill and then commit; uncommitted, it disappears.

    An exception, Ctrl-C or a kill leaves what was at ``final`` as it was. Only a directory that
    this toolchain wrote (it holds a manifest) or an empty one is ever replaced. Every ``OSError``
    of the block becomes ``OutputError``.
    """
    final = final.absolute()
    refuse_foreign(final)
    made = [folder for folder in final.parents if not folder.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(final)
        prefix = f".{final.name}{_PARTIAL}{os.getpid()}-"
        with files.temporary_folder(final.parent, prefix) as work:
            yield Stage(work)
    except OSError as error:
        raise _unwritable(final, error) from error
    finally:
        for folder in made:
            with suppress(OSError):  # it holds the result
                folder.rmdir()


def refuse_foreign(final: Path) -> None:
    """Raise when ``final`` is something that must not be replaced."""
    try:
        if final.is_symlink() or (final.exists() and not final.is_dir()):
            raise OutputError(
                f"{final} exists and is no folder", remedy="Give --output another folder."
            )
        if final.is_dir() and (foreign := _foreign_files(final)):
            raise OutputError(
                f"{final} holds files that no export of levit-export put there: "
                f"{', '.join(foreign[:SHOWN])}{' …' if len(foreign) > SHOWN else ''}",
                remedy="Move them, or give --output a new folder; nothing there was touched.",
            )
    except OSError as error:
        raise _unwritable(final, error) from error


def _foreign_files(folder: Path) -> list[str]:
    """Files below ``folder`` that its manifest does not vouch for; all, without one of ours."""
    present = {path for path in folder.rglob("*") if not path.is_dir()}
    replaceable = vouched_for(folder)
    if replaceable:
        replaceable |= {folder / name for name in (*REPORTS, ".DS_Store")}
    return sorted(path.relative_to(folder).as_posix() for path in present - replaceable)


def vouched_for(folder: Path) -> set[Path]:
    """An export's manifest and the files that it names; nothing where ``folder`` is none."""
    try:
        content = json.loads(files.read_text(folder / MANIFEST))
        if "levit-export" not in content["toolchain"]:
            return set()
        return {folder / name for name in (MANIFEST, *content["files"])}
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return set()


def _unwritable(final: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{final} cannot be written: {error.strerror or error}",
        remedy="Check permissions and free space, or give --output another folder.",
    )


def _take_place(work: Path, final: Path) -> None:
    """Move ``work`` to ``final``; what was there ends up at ``work``."""
    if not final.exists():
        work.rename(final)
        return
    if _exchange(work, final):
        return
    # Without an atomic exchange the old directory is set aside first and is never deleted before
    # the new one is in place.
    aside = work.with_name(work.name + _OLD)
    final.rename(aside)
    work.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step where the system can (Linux, macOS)."""
    at_cwd, linux_exchange, mac_swap = -100, 2, 2
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            done = library.renamex_np(first, second, ctypes.c_uint(mac_swap))
        else:
            flags = ctypes.c_uint(linux_exchange)
            done = library.renameat2(at_cwd, first, at_cwd, second, flags)
    except (OSError, AttributeError, TypeError):
        return False
    return bool(done == 0)


def _remove_abandoned(final: Path) -> None:
    """Delete what runs that were killed left beside ``final``, once ``final`` is in place."""
    prefix = f".{final.name}{_PARTIAL}"
    for left in final.parent.glob(f"{glob.escape(prefix)}*"):
        owner = left.name.removeprefix(prefix).split("-")[0]
        if not owner.isdecimal() or files.is_alive(int(owner)):
            continue
        if left.name.endswith(_OLD) and not final.exists():
            left.rename(final)  # killed between the two renames of _take_place
        else:
            shutil.rmtree(left, ignore_errors=True)
