"""Checkpoints of the Hugging Face Hub, fetched by its own client.

The client resumes, tries again and locks its files. It keeps content in files named after their
SHA-256 and does not read them again; here they are checked on each use, like the authors' files.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from levit_export.core.errors import (
    DownloadError,
    LevitExportError,
    MissingDependencyError,
    WrongHashError,
)
from levit_export.core.hashing import sha256_of
from levit_export.core.progress import Progress
from levit_export.models.published import HubModel
from levit_export.models.published.download import (
    Transfer,
    disk_errors,
    locked,
    reason,
    unusable,
)

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In order of preference."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


def fetch(model: HubModel, *, offline: bool, progress: Progress, transfer: Transfer) -> Path:
    """The weights of ``model`` in the cache, its companions beside them.

    What the cache has whole is used as it is, without asking for a newer revision. Raises what
    ``published.fetch`` does.
    """
    try:
        import huggingface_hub as client
    except ImportError as error:
        raise MissingDependencyError(
            "weights from the Hugging Face Hub need the package huggingface_hub",
            remedy="Install it: pip install 'levit-export[hub]'",
        ) from error
    folder = transfer.cache / "huggingface"
    with disk_errors(folder):
        found = _cached(client, model, folder)
        if found is not None and not _damage(found):
            return found
        if offline:
            state = "not in" if found is None else "damaged in"
            raise DownloadError(
                f"{model.id} is {state} the cache {folder}, and --offline forbids fetching it",
                remedy="Run once without --offline, or give weights with --checkpoint FILE.",
            )
        with locked(folder, model.id.replace("/", "--"), progress):
            found = _cached(client, model, folder)
            if found is not None and not _damage(found):
                return found  # by the process that was waited for
            if found is not None:
                _remove(found)
            progress.stage(f"fetching {model.id} from the Hugging Face Hub")
            return _download(client, model, folder, transfer)


def _cached(client: Any, model: HubModel, folder: Path) -> Path | None:
    """The weights, if the cache has them and all their companions."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    for name in WEIGHTS:
        with _mapped(model, folder), suppress(LocalEntryNotFoundError):
            # Given the names, a newer client does not insist on the rest of the repository.
            snapshot = client.snapshot_download(
                model.id,
                revision=model.revision,
                cache_dir=folder,
                allow_patterns=[*model.companions, name],
                local_files_only=True,
            )
            if found := _complete(Path(snapshot), model):
                return found
    return None


def _complete(snapshot: Path, model: HubModel) -> Path | None:
    if not all((snapshot / name).is_file() for name in model.companions):
        return None
    present = (snapshot / name for name in WEIGHTS if (snapshot / name).is_file())
    return next(present, None)


def _download(client: Any, model: HubModel, folder: Path, transfer: Transfer) -> Path:
    # The file with the pickle is fetched only where there is no other.
    for name in WEIGHTS:
        with _mapped(model, folder), _quiet(client):
            snapshot = client.snapshot_download(
                model.id,
                revision=model.revision,
                cache_dir=folder,
                allow_patterns=[*model.companions, name],
                endpoint=transfer.hub_url,
                etag_timeout=transfer.connect_timeout,
                token=False,  # public weights; nobody's token needs to travel
            )
        found = _complete(Path(snapshot), model)
        if found is None:
            continue
        if damage := _damage(found):
            _remove(found)
            raise WrongHashError(
                f"{model.id}: {damage}; it was not kept",
                remedy="Try again, or fetch it elsewhere and give it with --checkpoint FILE.",
            )
        return found
    raise _failed(model, f"it holds no {' and no '.join((*model.companions, *WEIGHTS))}")


def _remove(weights: Path) -> None:
    """Delete weights and the link to them; the client would take them for whole."""
    weights.resolve().unlink()
    weights.unlink(missing_ok=True)


def _damage(weights: Path) -> str:
    """What is wrong with cached weights, or nothing."""
    blob = weights.resolve()
    if not _SHA256.fullmatch(blob.name):  # a system without links, or a small file
        return ""
    found = sha256_of(blob)
    if found == blob.name:
        return ""
    return f"{weights.name} has SHA-256 {found}, not {blob.name} as published"


@contextmanager
def _quiet(client: Any) -> Iterator[None]:
    """The client draws bars of its own; ours is on the screen."""
    shown = not client.utils.are_progress_bars_disabled()
    client.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            client.utils.enable_progress_bars()


@contextmanager
def _mapped(model: HubModel, folder: Path) -> Iterator[None]:
    """The client's exceptions, and those of the HTTP library below it, become ours."""
    try:
        yield
    except LevitExportError:
        raise
    except Exception as error:  # the client's own, or its HTTP library's, which it has changed
        if isinstance(error, OSError) and error.errno in _DISK:
            raise unusable(folder, error) from error
        raise _failed(model, reason(error)) from error


def _failed(model: HubModel, why: str) -> DownloadError:
    return DownloadError(
        f"{model.id} could not be fetched from the Hugging Face Hub: {why}",
        remedy=f"Download {WEIGHTS[0]} of https://huggingface.co/{model.id} by hand, on another "
        "machine if need be, and give it with --checkpoint FILE; HF_ENDPOINT names a mirror.",
    )
