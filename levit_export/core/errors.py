"""Everything this package raises on purpose.

A message has three parts: what happened, the value seen, what to do. ``what`` carries the first
two, ``remedy`` the third, so that a renderer can set them apart.

::

    LevitExportError
    ├── UsageError                 a request that contradicts itself or the model
    │   ├── UnknownNameError       a model, format or pass that does not exist (nearest name given)
    │   ├── UnknownVersionError    a release of a runtime that there is not for a Python found here
    │   └── MissingDependencyError a package or platform that the request needs is absent
    ├── CheckpointError            a checkpoint that cannot be read or does not fit
    │   └── UnsafeCheckpointError  a pickle that asks to run code
    ├── DownloadError              published weights that cannot be had
    │   └── WrongHashError         a file whose content is not what was published
    ├── PassError                  a pass that refused, or matched nothing
    │   └── PassProofError         a pass that changed the function it was to preserve (status 1)
    ├── TargetError                a writer or a runtime failed
    │   ├── ExportFailedError      the writing of a file
    │   ├── RuntimeFailedError     the runtime that was to execute the artifact
    │   ├── NotRunError            a runtime, provider or device that did not start (status 3)
    │   │   └── NotInstalledError  another version of a runtime that could not be installed
    │   └── ArtifactError          a file on disk is not what it claims to be
    │       ├── PackageError       a damaged ``.mlpackage``
    │       └── UnsupportedOpError a Core ML package or op that the evaluator does not know
    ├── ClusterError               a Dask cluster that cannot be reached, or was lost
    ├── DataError                  images, labels, golden vectors, saved reports: unusable
    ├── ManifestError              an export directory whose description is missing or wrong
    │   └── BundleError            a bundle that is damaged, unsafe to unpack, or of another schema
    └── OutputError                a result that cannot be written where it was asked for
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class LevitExportError(Exception):
    """Base of all errors raised on purpose; ``exit_status`` is what the command line returns."""

    exit_status: ClassVar[int] = 2

    def __init__(self, what: str, *, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}. {remedy}" if remedy else what)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle both ``what`` and ``remedy``; by default only the message would be kept."""
        return _rebuild, (type(self), self.what, self.remedy)


def _rebuild(kind: type[LevitExportError], what: str, remedy: str) -> LevitExportError:
    error = kind.__new__(kind)
    LevitExportError.__init__(error, what, remedy=remedy)
    return error


class UsageError(LevitExportError):
    """The request contradicts itself, or asks for what the model or machine cannot give."""


class UnknownNameError(UsageError):
    """A name that is not in a closed list; the nearest member is suggested."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        import difflib

        choices = sorted(known)
        by_lower = {choice.lower(): choice for choice in choices}
        near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
        hint = f"Did you mean {by_lower[near[0]]!r}? " if near else ""
        super().__init__(
            f"unknown {kind} {name!r}", remedy=f"{hint}Known: {', '.join(choices) or 'none'}."
        )


class UnknownVersionError(UsageError):
    """A release of a runtime of which no Python found here has a wheel."""


class MissingDependencyError(UsageError):
    """A package or a platform that the request needs is absent."""


class CheckpointError(LevitExportError):
    """A checkpoint that cannot be read, or whose tensors do not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that asks to import or run code; nothing of it was executed."""


class DownloadError(LevitExportError):
    """Published weights that cannot be had: no network, no such file, not in the cache."""


class WrongHashError(DownloadError):
    """A file whose SHA-256 is not the published one."""


class PassError(LevitExportError):
    """A pass met a case it refuses, or matched nothing where it had to match."""


class PassProofError(PassError):
    """A pass changed the function that it promised to preserve."""

    exit_status = 1


class TargetError(LevitExportError):
    """An exporter or a runtime failed."""


class ExportFailedError(TargetError):
    """A file could not be written in the target's format."""


class RuntimeFailedError(TargetError):
    """The runtime that was to execute an artifact failed."""


class NotRunError(TargetError):
    """What was asked for does not start here, so nothing was executed and nothing is known."""

    exit_status = 3


class NotInstalledError(NotRunError):
    """Another version of a runtime that could not be installed, as without a network."""


class ArtifactError(TargetError):
    """A file on disk is not what it claims to be."""


class PackageError(ArtifactError):
    """A Core ML package that is damaged: missing parts, bad offsets, dangling names."""


class UnsupportedOpError(ArtifactError):
    """A Core ML package of a kind, or with an op, that the reference evaluator does not know."""


class ClusterError(LevitExportError):
    """A Dask cluster that cannot be reached, has no workers, or was lost in the middle."""


class DataError(LevitExportError):
    """Images, labels, golden vectors or saved reports that are unusable."""


class ManifestError(LevitExportError):
    """An export directory whose description is missing, damaged or of another schema."""


class BundleError(ManifestError):
    """A bundle that is damaged, unsafe to unpack, of another schema, or not to be made."""


class OutputError(LevitExportError):
    """A result that cannot be written where it was asked for."""
