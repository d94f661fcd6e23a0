"""The paths that a user gave: bundles are unpacked, and called by their own names all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from levit_export.core.errors import LevitExportError

if TYPE_CHECKING:
    from levit_export.checks.results import ArtifactReport
    from levit_export.reports.report import Report

SUFFIX = ".zip"


@dataclass(frozen=True)
class OpenedPaths:
    """``paths`` to work on, and for those that are unpacked bundles what to call them."""

    paths: tuple[Path, ...]
    bundles: dict[Path, Path] = field(default_factory=dict)

    def named(self, text: str) -> str:
        """``text`` with the bundles in place of the folders they were unpacked into."""
        for folder, bundle in self.bundles.items():
            # On macOS the temporary folder is a link, and libraries name what it leads to.
            for spelling in {str(folder.resolve()), str(folder)}:
                text = text.replace(spelling, str(bundle))
        return text

    def renamed(self, report: Report) -> Report:
        """``report`` with the names that the user knows."""
        return replace(report, artifacts=tuple(map(self._renamed, report.artifacts)))

    def _renamed(self, artifact: ArtifactReport) -> ArtifactReport:
        parity, timing, drift = artifact.parity, artifact.timing, artifact.drift
        findings = []
        for found in parity.findings:
            values = {
                name: self.named(value) if isinstance(value, str) else value
                for name, value in found.values.items()
            }
            findings.append(replace(found, values=values))
        return replace(
            artifact,
            path=self.named(artifact.path),
            notes=tuple(map(self.named, artifact.notes)),
            parity=replace(parity, findings=tuple(findings)),
            timing=None if timing is None else replace(timing, reason=self.named(timing.reason)),
            drift=None if drift is None else replace(drift, sentence=self.named(drift.sentence)),
        )

    @property
    def folder(self) -> Path | None:
        """What the report's paths are relative to; None where several paths were given."""
        from levit_export.storage.export_directory import MANIFEST

        if len(self.paths) != 1:
            return None
        (path,) = self.paths
        is_export = path.suffix != ".mlpackage" and (path / MANIFEST).is_file()
        return self.bundles.get(path, path) if is_export else path.parent


@contextmanager
def opened(paths: Iterable[Path]) -> Iterator[OpenedPaths]:
    """The places of ``paths``. Bundles are verified and unpacked for as long as the block lasts.

    Errors that leave the block call them by their names too. Raises ``BundleError``.
    """
    from levit_export.storage.device_bundle import open_bundle

    with ExitStack() as stack:
        found: list[Path] = []
        bundles: dict[Path, Path] = {}
        for path in dict.fromkeys(paths):
            if path.suffix.lower() == SUFFIX and not path.is_dir():
                found.append(stack.enter_context(open_bundle(path)))
                bundles[found[-1]] = path
            else:
                found.append(path)
        places = OpenedPaths(tuple(found), bundles)
        try:
            yield places
        except LevitExportError as error:
            error.what, error.remedy = places.named(error.what), places.named(error.remedy)
            raise
