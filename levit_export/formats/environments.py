"""Environments of Python, each with one version of one runtime, made once and kept in the cache.

An environment is made under another name beside its place and renamed when all is installed, so
what lies in its place is whole, however a run ended. Two processes that need the same one make it
once: the second waits for the first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from levit_export.core.errors import (
    NotInstalledError,
    UnknownNameError,
    UnknownVersionError,
    UsageError,
)
from levit_export.core.progress import Progress
from levit_export.models.published.download import Transfer, disk_errors, locked

FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""Runtimes of which other versions are installed, and the format that each reads."""

PYTHONS = ("3.13", "3.12", "3.11", "3.10")
"""Interpreters that are looked for where this one has no wheel of the version."""

NUMPY_2 = (1, 19)
"""The first ONNX Runtime that works with NumPy 2; earlier ones install beside it, and fail."""

UNREACHABLE = (
    "newconnectionerror",
    "name resolution",
    "connection broken",
    "connection refused",
    "max retries exceeded",
    "timed out",
    "proxyerror",
    "from versions: none",
    "error sending request",
    "could not connect",
    "dns error",
    "network was disabled",
)
"""What pip and uv say where no index answers; pip then finds no version at all."""

NO_SUCH = ("no matching distribution", "no solution found", "there is no version")
"""What they say of a version that the index does not have for an interpreter."""


@dataclass(frozen=True)
class Version:
    """One release of a runtime, ``onnxruntime==1.20``."""

    package: str
    release: str

    @classmethod
    def parse(cls, text: str) -> Version:
        """From ``NAME==RELEASE``. Raises ``UsageError`` for what cannot be tried."""
        package, equals, release = (part.strip() for part in text.partition("=="))
        package = package.lower()
        if package == "torch":
            raise UsageError(
                f"--against {text}: PyTorch computes the reference, it does not run the files",
                remedy=f"Give {' or '.join(f'{name}==VERSION' for name in FORMATS)}.",
            )
        if not equals or not re.fullmatch(r"\d+(\.\d+)*", release):
            raise UsageError(
                f"--against {text} is not a runtime and a release",
                remedy="Give one such as onnxruntime==1.20 or openvino==2025.2.",
            )
        if package not in FORMATS:
            raise UnknownNameError("runtime of --against", package, FORMATS)
        return cls(package, release)

    @property
    def format(self) -> str:
        """The format that the runtime reads."""
        return FORMATS[self.package]

    @property
    def order(self) -> tuple[int, ...]:
        """Numbers that older releases have smaller; 1.20 and 1.20.0 are one release."""
        numbers = [int(part) for part in self.release.split(".")]
        while numbers and not numbers[-1]:
            numbers.pop()
        return tuple(numbers)

    @property
    def requirements(self) -> tuple[str, ...]:
        """What is installed."""
        is_early = self.package == "onnxruntime" and self.order < NUMPY_2
        return (f"{self.package}=={self.release}", "numpy<2" if is_early else "numpy")

    def __str__(self) -> str:
        return f"{self.package} {self.release}"


def interpreter(
    version: Version, progress: Progress, *, environment: Mapping[str, str] = os.environ
) -> Path:
    """The interpreter of an environment that holds ``version``, made where there is none yet.

    This Python is preferred, and another one on the search path taken where only that has a wheel.
    Raises ``UnknownVersionError`` where no Python here has one, and ``NotInstalledError`` where it
    could not be installed, as without a network.
    """
    folder = Transfer.from_environment(environment).cache / "environments"
    tag = f"{version.package}-{'.'.join(map(str, version.order))}-{sysconfig.get_platform()}"
    here = "{}.{}".format(*sys.version_info)
    pythons = [here, *(python for python in PYTHONS if python != here)]
    for python in pythons:  # before anything is looked for in an index
        if _python_in(place := folder / f"{tag}-py{python}").exists():
            return _python_in(place)
    tried, offered = [], ""
    for python, executable in _interpreters(pythons, environment):
        place = folder / f"{tag}-py{python}"
        tried.append(python)
        with disk_errors(folder), locked(folder, place.name, progress):
            # The process that was waited for may have made it.
            if _python_in(place).exists():
                return _python_in(place)
            progress.stage(f"installing {version} for Python {python}, once")
            try:
                _make(place, executable, version)
            except UnknownVersionError as error:
                offered = offered or error.remedy
            else:
                return _python_in(place)
    raise UnknownVersionError(
        f"there is no {version} for Python {' or '.join(tried)} on {sysconfig.get_platform()}",
        remedy=offered,
    )


def _interpreters(
    pythons: Sequence[str], environment: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """This interpreter, then those on the search path that start and are what they are called."""
    yield pythons[0], sys.executable
    for python in pythons[1:]:
        found = shutil.which(f"python{python}", path=environment.get("PATH"))
        if found is None:
            continue
        code = "import sys; print('{}.{}'.format(*sys.version_info))"
        done = subprocess.run(  # noqa: S603 - a Python that the user has
            [found, "-I", "-c", code], capture_output=True, text=True, check=False
        )
        if done.returncode == 0 and done.stdout.strip() == python:
            yield python, found


def uv() -> str | None:
    """The program uv, which installs faster than pip, where there is one."""
    return shutil.which("uv")


def _python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _make(place: Path, python: str, version: Version) -> None:
    """Put a whole environment in its place, or raise and leave none there."""
    for left in (place, *place.parent.glob(f"{place.name}.making-*")):
        shutil.rmtree(left, ignore_errors=True)  # its Python is gone, or its maker was killed
    making = Path(tempfile.mkdtemp(prefix=f"{place.name}.making-", dir=place.parent))
    # Wheels only: to build one would run whatever its source says.
    install = ["install", "--quiet", "--only-binary", ":all:"]
    try:
        if program := uv():
            _run([program, "venv", "--quiet", "--python", python, making], version)
            into = ["--python", str(_python_in(making))]
            _run([program, "pip", *install, *into, *version.requirements], version)
        else:
            _run([python, "-I", "-m", "venv", making], version)
            pip = [str(_python_in(making)), "-I", "-m", "pip", "--disable-pip-version-check"]
            _run([*pip, *install, "--no-input", "--retries", "2", *version.requirements], version)
        making.rename(place)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _run(command: Sequence[str | Path], version: Version) -> None:
    """Run an installer. Raises what its failure means."""
    done = subprocess.run(  # noqa: S603 - uv, or pip of this or a new environment
        list(map(str, command)), capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    printed = (done.stderr + done.stdout).strip()
    said, last = " ".join(printed.lower().split()), printed.splitlines()[-1:]
    if any(words in said for words in UNREACHABLE):
        raise NotInstalledError(
            f"{version} could not be installed: no package index answers",
            remedy="Connect, or name an index of yours as pip or uv takes it; what was installed "
            "once is kept.",
        )
    if any(words in said for words in NO_SUCH):
        known = re.search(r"from versions: ([^)]*)\)", printed)
        latest = known.group(1).split(", ")[-8:] if known else []
        raise UnknownVersionError(
            f"there is no {version}",
            remedy=f"The latest are {', '.join(latest)}." if latest else "Look at its releases.",
        )
    raise NotInstalledError(
        f"{version} could not be installed: {(last or ['no reason given'])[0].strip()[:300]}",
        remedy="Check that the cache folder (LEVIT_EXPORT_CACHE) is writable and has free space.",
    )
