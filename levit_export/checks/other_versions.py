"""Hold artifacts against their reference on other versions of their runtimes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from levit_export.checks import execution
from levit_export.checks.execution import Row
from levit_export.checks.findings import Finding
from levit_export.checks.reference import Reference
from levit_export.checks.results import ArtifactReport
from levit_export.core.errors import NotInstalledError
from levit_export.core.progress import Progress
from levit_export.core.values import Artifact, RunOptions, Session
from levit_export.formats import elsewhere, environments
from levit_export.formats.environments import Version

Environments = Mapping[Version, Path | NotInstalledError]
"""The interpreter that has each version, or why it could not be installed."""


def install(versions: Sequence[Version], progress: Progress) -> Environments:
    """An environment for each version, the oldest first.

    Raises ``UnknownVersionError`` for one that there is not.
    """
    made: dict[Version, Path | NotInstalledError] = {}
    for version in sorted(dict.fromkeys(versions), key=lambda each: (each.package, each.order)):
        try:
            made[version] = environments.interpreter(version, progress)
        except NotInstalledError as error:
            made[version] = error
    return made


def check(
    artifact: Artifact,
    reference: Reference,
    claims: tuple[str, ...],
    where: Environments,
    *,
    shown: Artifact,
    folder: Path | None,
    threads: int,
    progress: Progress,
) -> list[ArtifactReport]:
    """A report on an artifact for each version of its runtime, from the oldest to the latest.

    ``shown`` is the artifact as reports show it. The report on the oldest version that passes says
    so. Accuracy on labelled images is left to the version that is installed here.
    """
    run = RunOptions(threads)  # other versions execute on the CPU, in float32
    expected = replace(reference, images=None)
    reports = []
    for version, python in where.items():
        if version.format == artifact.format:
            progress.stage(f"checking {artifact.path.name} on {version}")
            opened = partial(_opened, version, python)
            found = execution.check(Row(artifact, run), expected, claims, opened).parity
            report = execution.describe(Row(shown, run), folder, found)
            reports.append(replace(report, device=str(version)))
    return _oldest_named(reports)


@contextmanager
def _opened(version: Version, python: Path | NotInstalledError, row: Row) -> Iterator[Session]:
    """A row's session in another version. Raises why that is not installed."""
    if isinstance(python, NotInstalledError):
        raise python
    with elsewhere.opened(row.artifact, row.run, version, python) as session:
        yield session


def _oldest_named(reports: Sequence[ArtifactReport]) -> list[ArtifactReport]:
    """``reports``, the first of which that passes says that it is the oldest of them that does."""
    named = list(reports)
    passed = next((r for r in reports if r.parity.verdict == "pass"), None)
    if passed is not None:
        others = [
            f"{other.device}: {other.parity.verdict.replace('-', ' ')}"
            for other in reports
            if other is not passed
        ]
        values = {"version": passed.device, "others": ", ".join(others) or "no other was tried"}
        said = passed.parity.joined(Finding("oldest-that-passes", values))
        named[reports.index(passed)] = replace(passed, parity=said)
    return named
