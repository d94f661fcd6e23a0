"""The files of onnxruntime-web: of a folder, of the cache, or of the npm registry.

One version is taken, whose hashes are below, so that bundles have the same bytes wherever the
files come from. Two files are enough for the CPU: a WebAssembly build and the one module that
drives it, loader included. Two more are for the GPU (WebGPU); WebGL and WebNN are left out.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from levit_export.core import files
from levit_export.core.errors import LevitExportError, UsageError, WrongHashError
from levit_export.core.hashing import FileEntry, blocks
from levit_export.core.progress import Progress, Silent
from levit_export.models.published.download import (
    KnownFile,
    Transfer,
    disk_errors,
    fetch_file,
)

VERSION = "1.30.0"
INTEGRITY = (
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02V"
    "b7QmRMDs1SigqR4CXAfKYQ=="
)
"""``dist.integrity`` of this version in the npm registry."""

FILES = {
    "ort.wasm.bundle.min.mjs": FileEntry(
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90", 73_054
    ),
    "ort-wasm-simd-threaded.wasm": FileEntry(
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2", 14_239_897
    ),
}
"""What the page loads for the CPU, all of it in ``dist/`` of the package."""

GPU_FILES = {
    "ort.webgpu.bundle.min.mjs": FileEntry(
        "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2", 117_732
    ),
    "ort-wasm-simd-threaded.asyncify.wasm": FileEntry(
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da", 26_781_914
    ),
}
"""What it loads in their place where it runs on the GPU."""

NPM_URL = "https://registry.npmjs.org"
NPM_VARIABLE = "LEVIT_EXPORT_NPM_URL"
BY_HAND = f"npm pack onnxruntime-web@{VERSION}, unpack it, and give the folder with --ort-web DIR"


@dataclass(frozen=True)
class NpmPackage:
    """The npm package: its address below ``registry``, and its hash as npm writes it."""

    registry: str = NPM_URL
    integrity: str = INTEGRITY
    files: Mapping[str, FileEntry] = field(default_factory=lambda: FILES)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> NpmPackage:
        """``LEVIT_EXPORT_NPM_URL`` names another registry, as ``npm config get registry`` does."""
        return cls((environment.get(NPM_VARIABLE) or NPM_URL).rstrip("/"))

    @property
    def name(self) -> str:
        """The tarball's name, in the registry and in the cache."""
        return f"onnxruntime-web-{VERSION}.tgz"

    @property
    def url(self) -> str:
        """Where the registry has it."""
        return f"{self.registry}/onnxruntime-web/-/{self.name}"


def find(
    folder: Path | None = None,
    *,
    gpu: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
    transfer: Transfer | None = None,
    package: NpmPackage | None = None,
) -> dict[str, bytes]:
    """The library's files by name, their hashes checked; with ``gpu`` those for the GPU too.

    ``folder`` is an unpacked npm package; without it the tarball of the cache is taken, and
    fetched unless ``offline``. Raises ``UsageError`` for a folder that holds something else,
    ``DownloadError`` and ``WrongHashError`` when the tarball cannot be had, and ``OutputError``
    when the cache cannot be written.
    """
    package = package or NpmPackage.from_environment()
    if gpu:
        package = replace(package, files={**package.files, **GPU_FILES})
    if folder is not None:
        return _of_folder(folder, package)
    transfer = transfer or Transfer.from_environment()
    file = KnownFile(
        url=package.url,
        path=transfer.cache / package.name,
        hash_of=integrity_of,
        expected=package.integrity,
        by_hand=f"By hand: {BY_HAND}.",
        mirror=f"{NPM_VARIABLE} names another npm registry.",
    )
    path = fetch_file(file, offline=offline, transfer=transfer, progress=progress or Silent())
    with disk_errors(transfer.cache):
        return _of_tarball(path, package)


def _of_folder(folder: Path, package: NpmPackage) -> dict[str, bytes]:
    """From ``folder/dist``, or from ``folder`` if that is the package's ``dist`` itself."""
    dist = folder / "dist" if (folder / "dist").is_dir() else folder

    def refuse(name: str, problem: str) -> LevitExportError:
        return UsageError(
            f"{folder} does not hold onnxruntime-web {VERSION}: {dist / name} {problem}",
            remedy=f"By hand: {BY_HAND}. Or leave --ort-web out to have it fetched.",
        )

    return _checked(package, lambda name: files.read_bytes(dist / name), refuse)


def _of_tarball(path: Path, package: NpmPackage) -> dict[str, bytes]:
    def refuse(name: str, problem: str) -> LevitExportError:
        return WrongHashError(f"{name} of {path} {problem}", remedy=f"Or: {BY_HAND}.")

    def read(name: str) -> bytes:
        try:
            member = tar.extractfile(f"package/dist/{name}")
        except KeyError as error:
            raise FileNotFoundError from error
        if member is None:
            raise FileNotFoundError
        return member.read()

    with tarfile.open(path) as tar:
        return _checked(package, read, refuse)


def _checked(
    package: NpmPackage,
    read: Callable[[str], bytes],
    refuse: Callable[[str, str], LevitExportError],
) -> dict[str, bytes]:
    """Every file as it has to be, or what ``refuse`` makes of its name and what is wrong."""
    found = {}
    for name, wanted in package.files.items():
        try:
            content = read(name)
        except OSError as error:
            raise refuse(name, f"cannot be read: {error.strerror or 'missing'}") from error
        digest = sha256(content).hexdigest()
        if FileEntry(digest, len(content)) != wanted:
            raise refuse(name, f"has SHA-256 {digest}, not {wanted.sha256}")
        found[name] = content
    return found


def integrity_of(path: Path) -> str:
    """SHA-512 of a file as npm writes it: ``sha512-`` and Base64."""
    digest = hashlib.sha512()
    with files.open_regular(path) as file:
        for block in blocks(file):
            digest.update(block)
    return f"sha512-{b64encode(digest.digest()).decode()}"
