"""Judge what a bundle's verifier measured on a device, by the bundle's own tolerances."""

from __future__ import annotations

from collections.abc import Mapping

from levit_export.checks import parity
from levit_export.checks.execution import coarser_of
from levit_export.checks.findings import Finding
from levit_export.checks.parity import ParityReport
from levit_export.checks.reference import Reference
from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import Regimes, TimingReport
from levit_export.core import hashing
from levit_export.core.errors import DataError
from levit_export.core.values import Artifact, Signature, TensorSpec
from levit_export.formats.onnx import providers
from levit_export.storage.device_bundle.results import DeviceRow, Latency, Results


def judge(
    results: Results, artifacts: Mapping[str, Artifact], reference: Reference
) -> list[ArtifactReport]:
    """A report on each row of ``results``.

    ``artifacts`` are the bundle's, by their paths in it; ``reference`` has its golden vectors.
    Raises ``DataError`` for a row of an artifact that the bundle does not have.
    """
    reports = []
    for row in results.rows:
        artifact = artifacts.get(row.artifact)
        if artifact is None:
            raise DataError(
                f"the results of {results.device} are about {row.artifact!r}, which the bundle "
                "does not hold",
                remedy=f"Its artifacts are {', '.join(artifacts)}.",
            )
        entry = hashing.digest(artifact.files)
        timing = None if row.latency is None else _timing(row.latency, row.runtime)
        notes = [f"reported by {results.program} on {results.device} ({results.system})"]
        if timing is not None:
            notes.append(_in_words(timing))
        reports.append(
            ArtifactReport(
                format=artifact.format,
                precision=artifact.precision,
                path=row.artifact,
                bytes=entry.bytes,
                sha256=entry.sha256,
                parity=_compared(row, artifact, reference),
                timing=timing,
                notes=tuple(notes),
                device=f"{results.device}, {row.unit}",
            )
        )
    return reports


def _compared(row: DeviceRow, artifact: Artifact, reference: Reference) -> ParityReport:
    """The device's answers to the golden inputs, held against the reference's."""
    runtime = f"{row.runtime} ({row.unit})"
    if row.error:
        failed = Finding("run-failed", {"text": row.error})
        return ParityReport(runtime, len(reference.samples), findings=(failed,))
    arrays = row.arrays()
    given = tuple(TensorSpec(name, array.shape) for name, array in arrays.items())
    expected = reference.matching(Signature(artifact.signature.inputs, given))
    told = providers.told_elsewhere(row.unit) if artifact.format == "onnx" else ""
    judged = coarser_of(artifact.precision, told or "fp32")
    if judged not in expected.tolerances:
        return parity.not_run(f"the bundle has no tolerance for answers in {judged}")
    return parity.compare_outputs(
        expected.outputs,
        arrays,
        expected.samples,
        expected.tolerances[judged],
        expected=expected.signature,
        runtime=runtime,
        doubt=expected.doubt,
    )


def _timing(latency: Latency, runtime: str) -> TimingReport:
    return TimingReport(
        verdict="pass",
        runtime=runtime,
        threads=latency.threads,
        batch=latency.batch,
        load_s=latency.cold_s - latency.first_s,
        seconds=latency.warm_s,
        regimes=Regimes(latency.cold_s, latency.first_s, latency.sustained_s),
    )


def _in_words(timing: TimingReport) -> str:
    """Every regime with a figure of its own."""
    words = f"latency: warm {timing.median_ms:.2f} ms (p90 {timing.quantile_ms(0.9):.2f})"
    return words if timing.regimes is None else f"{words}, {timing.regimes.in_words}"
