"""The page in a bundle: its files, and where those of ONNX Runtime Web come from."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from browser import served
from support import Cli
from tiny_exports import ONNX

from levit_export.core.errors import DownloadError, UsageError, WrongHashError
from levit_export.core.hashing import FileEntry
from levit_export.models.published import Transfer
from levit_export.storage import device_bundle
from levit_export.storage.device_bundle import web
from levit_export.storage.device_bundle.web import library
from levit_export.storage.device_bundle.web.library import NpmPackage

CONTENTS = {name: f"stands for {name}".encode() for name in library.FILES}
ENTRIES = {
    name: FileEntry(hashlib.sha256(content).hexdigest(), len(content))
    for name, content in CONTENTS.items()
}


def tarball(path: Path) -> Path:
    """An npm package of the files that are needed and one that is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {**CONTENTS, "ort.js": b"not needed"}.items():
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def unpacked_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the unpacked npm package, and its hashes in place of the real ones."""
    monkeypatch.setattr(library, "FILES", ENTRIES)
    for name, content in CONTENTS.items():
        (tmp_path / "package" / "dist").mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / "dist" / name).write_bytes(content)
    return tmp_path / "package"


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A folder laid out as the npm registry is, with the stand-in's tarball."""
    tarball(tmp_path / "registry" / "onnxruntime-web" / "-" / NpmPackage().name)
    return tmp_path / "registry"


@pytest.fixture
def fetching(registry: Path, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """``library.find`` with a registry at an address and a cache of its own."""
    (file,) = registry.rglob("*.tgz")
    integrity = library.integrity_of(file)
    transfer = Transfer(tmp_path / "cache", attempts=1)

    def find(address: str, *, offline: bool = False) -> dict[str, bytes]:
        package = NpmPackage(address, integrity, ENTRIES)
        return library.find(offline=offline, transfer=transfer, package=package)

    return find


# The page's files


def test_every_file_of_the_page_is_bundled() -> None:
    """The list of the page's files is that of the folder, Python aside."""
    folder = resources.files(web.__name__)
    names = {each.name for each in folder.iterdir() if each.is_file()}
    assert {name for name in names if not name.endswith(".py")} == set(web.PAGE)


def test_the_page_names_no_other_place() -> None:
    """Nothing of the page holds an address but this machine's, and scripts are its own only."""
    folder = resources.files(web.__name__)
    for name in web.PAGE:
        text = (folder / name).read_text(encoding="utf-8")
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w:/.-]*", text))
        allowed = {"http://127.0.0.1:8000/web/", "http://www.w3.org/2000/svg"}
        assert addresses <= allowed, name
    html = (folder / "index.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval';")
    assert "unsafe-inline" not in policy[1]


def test_a_bundle_with_the_page(tiny: Path, tmp_path: Path) -> None:
    """Page, runtime and licence are in the zip, hashed, and told of; bytes are reproducible."""
    first = device_bundle.write(tiny, tmp_path / "one.zip", library=CONTENTS)
    second = device_bundle.write(tiny, tmp_path / "two.zip", library=CONTENTS)
    assert first.read_bytes() == second.read_bytes()
    with device_bundle.open_bundle(first) as folder:
        described = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["files"]
        runtime = {f"web/onnxruntime/{name}" for name in CONTENTS}
        page = {f"web/{name}" for name in web.PAGE}
        assert {name for name in described if name.startswith("web/")} == page | runtime
        assert (folder / "web/onnxruntime/ort-wasm-simd-threaded.wasm").read_bytes() == (
            CONTENTS["ort-wasm-simd-threaded.wasm"]
        )
        sums = (folder / "SHA256SUMS").read_text(encoding="utf-8")
        assert all(f"  {name}\n" in sums for name in (*page, *runtime, web.LICENCE))
        assert "## In the browser" in (folder / "README.md").read_text(encoding="utf-8")
        licences = (folder / "LICENCES.md").read_text(encoding="utf-8")
        assert f"onnxruntime-web {library.VERSION}" in licences
        assert "MIT License" in (folder / web.LICENCE).read_text(encoding="utf-8")


def test_a_bundle_without_the_page(unpacked: Path) -> None:
    """Nothing of the page is in a bundle that was made without it."""
    assert not (unpacked / "web").exists()
    assert not (unpacked / web.LICENCE).exists()
    for name in ("README.md", "LICENCES.md"):
        assert "browser" not in (unpacked / name).read_text(encoding="utf-8")
        assert "onnxruntime-web" not in (unpacked / name).read_text(encoding="utf-8")


def test_a_page_needs_an_onnx_file(tiny: Path, tmp_path: Path) -> None:
    """A page without an ONNX file in the bundle is refused, and nothing is written."""
    with pytest.raises(UsageError, match="is to hold openvino"):
        device_bundle.write(tiny, tmp_path / "b.zip", ("openvino",), library=CONTENTS)
    assert list(tmp_path.iterdir()) == []


# The runtime's files


def test_from_a_folder(unpacked_package: Path) -> None:
    """The files of an unpacked package are taken, whether it or its ``dist`` is given."""
    assert library.find(unpacked_package) == CONTENTS
    assert library.find(unpacked_package / "dist") == CONTENTS


def test_a_folder_of_another_version(unpacked_package: Path) -> None:
    """A file that is not the pinned version's is refused with its name; so is a missing one."""
    path = unpacked_package / "dist" / "ort.wasm.bundle.min.mjs"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UsageError, match=r"ort\.wasm\.bundle\.min\.mjs has SHA-256") as caught:
        library.find(unpacked_package)
    assert f"npm pack onnxruntime-web@{library.VERSION}" in caught.value.remedy
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        library.find(unpacked_package)


def test_fetched_once(fetching: Callable[..., dict[str, bytes]], registry: Path) -> None:
    """The tarball is fetched from the registry; after that the cache does, offline too."""
    with served(registry) as address:
        assert fetching(address) == CONTENTS
    assert fetching("http://127.0.0.1:9") == CONTENTS
    assert fetching("http://127.0.0.1:9", offline=True) == CONTENTS


def test_a_damaged_cache_is_mended(
    fetching: Callable[..., dict[str, bytes]], registry: Path, tmp_path: Path
) -> None:
    """A tarball that was altered in the cache is fetched again, and offline not taken."""
    cached = tmp_path / "cache" / NpmPackage().name
    cached.parent.mkdir()
    cached.write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="is damaged in the cache"):
        fetching("http://127.0.0.1:9", offline=True)
    with served(registry) as address:
        assert fetching(address) == CONTENTS


def test_offline_without_a_cache(fetching: Callable[..., dict[str, bytes]]) -> None:
    """Offline, what the cache lacks is an error that says how to get it."""
    with pytest.raises(DownloadError, match="is not in the cache") as caught:
        fetching("http://127.0.0.1:9", offline=True)
    assert "--ort-web DIR" in caught.value.remedy


def test_a_registry_that_sends_something_else(
    fetching: Callable[..., dict[str, bytes]], registry: Path, tmp_path: Path
) -> None:
    """A tarball of another hash is refused and not kept."""
    (file,) = registry.rglob("*.tgz")
    file.write_bytes(file.read_bytes() + b"\0")
    with served(registry) as address, pytest.raises(WrongHashError, match="sha512-"):
        fetching(address)
    left = [path.suffix for path in (tmp_path / "cache").iterdir()]
    assert left == [".lock"]


def test_a_registry_that_lacks_it(
    fetching: Callable[..., dict[str, bytes]], registry: Path
) -> None:
    """A registry without the package is an error that speaks of it, not of checkpoints."""
    (file,) = registry.rglob("*.tgz")
    file.unlink()
    with served(registry) as address, pytest.raises(DownloadError, match="404") as caught:
        fetching(address)
    assert "LEVIT_EXPORT_NPM_URL" in caught.value.remedy
    assert "checkpoint" not in caught.value.remedy


def test_the_address_of_the_registry() -> None:
    """It is npm's own, or what the environment names, with or without a slash at its end."""
    path = f"/onnxruntime-web/-/onnxruntime-web-{library.VERSION}.tgz"
    assert NpmPackage.from_environment({}).url == f"https://registry.npmjs.org{path}"
    mirror = {"LEVIT_EXPORT_NPM_URL": "https://mirror.example/npm/"}
    assert NpmPackage.from_environment(mirror).url == f"https://mirror.example/npm{path}"


# The command line


def test_bundle_with_web(cli: Cli, tiny: Path, tmp_path: Path, unpacked_package: Path) -> None:
    """``--with web --ort-web DIR`` makes a bundle with the page and says how to open it."""
    output = tmp_path / "b.zip"
    result = cli("bundle", tiny, "-o", output, "--with", "web", "--ort-web", unpacked_package)
    assert result.exit_code == 0, result.output
    assert "http://127.0.0.1:8000/web/" in result.stdout
    with device_bundle.open_bundle(output) as folder:
        assert (folder / "web" / "index.html").is_file()
        assert (folder / ONNX).is_file()


def test_bundle_with_webgpu(
    cli: Cli,
    tiny: Path,
    tmp_path: Path,
    unpacked_package: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``--with webgpu`` adds the runtime for GPUs, which ``--with web`` leaves out."""
    content = b"for the GPU"
    entry = FileEntry(hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setattr(library, "GPU_FILES", dict.fromkeys(library.GPU_FILES, entry))
    for name in library.GPU_FILES:
        (unpacked_package / "dist" / name).write_bytes(content)
    for extra, has_gpu in (("web", False), ("webgpu", True)):
        output = tmp_path / f"{extra}.zip"
        result = cli("bundle", tiny, "-o", output, "--with", extra, "--ort-web", unpacked_package)
        assert result.exit_code == 0, result.output
        with device_bundle.open_bundle(output) as folder:
            found = {path.name for path in (folder / "web" / "onnxruntime").iterdir()}
            assert found == {*library.FILES, *(library.GPU_FILES if has_gpu else ())}
            card = (folder / "README.md").read_text(encoding="utf-8")
            assert ("on the GPU" in card) is has_gpu


@pytest.mark.parametrize("options", [("--ort-web", "."), ("--offline",)])
def test_options_of_the_page_without_it(
    cli: Cli, tiny: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Options that only the page has are refused where no page is asked for."""
    result = cli("bundle", tiny, "-o", tmp_path / "b.zip", *options)
    assert result.exit_code == 2
    assert "Add --with web" in result.stderr
