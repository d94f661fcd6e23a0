"""Hold a report against an earlier one: what is missing, worse, larger or slower.

Each figure may get worse by its slack and no more, and a regression names both figures and the
limit. Only what both reports know is compared, and what cannot be compared is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from levit_export.checks.parity import OutputParity
from levit_export.checks.results import ArtifactReport
from levit_export.core.errors import UsageError
from levit_export.core.values import GRAVEST_FIRST, Tolerance, Verdict
from levit_export.reports.gate import latency
from levit_export.reports.gate.checks import Check, device, labels
from levit_export.reports.report import Report

PARITY_SLACK = 2.0
"""Default of ``--parity-slack``.

Another processor or version of a runtime rounds elsewhere: another draw of the same errors. Of two
draws of 260 normal errors, the bundled model's 26 samples of 10 logits, the larger maximum exceeds
twice the other in 1 of 10,000 cases; with more numbers in fewer.
"""

SIZE_SLACK = 1.0
"""Default of ``--size-slack`` in percent: names and versions in a file change, weights do not."""


TIMINGS = 3
"""How often an artifact has to be found slower before it is called so.

A latency is a measurement on a machine that others use: what is found once may be their doing.
"""

PARITY, SIZE, LATENCY = (f"{figure} against baseline" for figure in ("parity", "size", "latency"))


@dataclass(frozen=True)
class Slack:
    """How much worse than the baseline each figure may be.

    ``parity`` is a factor on the share of its tolerance that an output uses; ``size`` and
    ``latency`` are percents. Latency is compared only when its slack is given.
    """

    parity: float = PARITY_SLACK
    size: float = SIZE_SLACK
    latency: float | None = None


def refuse_other_model(report: Report, baseline: Report) -> None:
    """Raise ``UsageError`` when both name their model and it is not the same network.

    Other weights of the same network are what a baseline is for.
    """
    if report.model is None or baseline.model is None:
        return
    here, there = (
        f"{m.name} ({m.parameters} parameters, {m.macs} MACs)"
        for m in (report.model, baseline.model)
    )
    if here != there:
        raise UsageError(
            f"the baseline is of {there}, this is {here}",
            remedy="Give the report of an earlier export of the same network.",
        )


def compare(report: Report, baseline: Report, slack: Slack) -> tuple[Check, ...]:
    """Every artifact of either report held against its like in the other.

    Raises ``UsageError`` for a baseline of another model, and for one without any latency when
    latency is to be compared.
    """
    refuse_other_model(report, baseline)
    if slack.latency is not None:
        latency.refuse_untimed(baseline)
    found: list[Check] = []
    for now, then in pairs(report.artifacts, baseline.artifacts):
        if now is None or then is None:
            found.append(_presence(report, baseline, now, then))
            continue
        label = labels(report.artifacts)[report.artifacts.index(now)]
        add = [
            (PARITY, _parity(now, then, slack.parity)),
            (SIZE, _size(now, then, slack.size)),
        ]
        if slack.latency is not None:
            answer = latency.judge((report, now), (baseline, then), slack.latency)
            add += [] if answer is None else [(LATENCY, answer)]
        found += [Check(label, now.path, name, *answer) for name, answer in add]
    return tuple(found)


def confirmed(measure: Callable[[], Report], baseline: Report, slack: Slack) -> Report:
    """The first report of ``measure`` in which nothing is slower, at most the last of ``TIMINGS``.

    So a regression is one that shows every time.
    """
    report = measure()
    for _ in range(TIMINGS - 1):
        answers = {c.verdict for c in compare(report, baseline, slack) if c.name == LATENCY}
        if "fail" not in answers:
            break
        report = measure()
    return report


Pair = tuple[ArtifactReport | None, ArtifactReport | None]


def pairs(now: Sequence[ArtifactReport], then: Sequence[ArtifactReport]) -> list[Pair]:
    """Artifacts of the same format and precision, by path and device where there are several."""
    found: list[Pair] = []
    for name in dict.fromkeys(artifact.id for artifact in (*now, *then)):
        here = [artifact for artifact in now if artifact.id == name]
        there = [artifact for artifact in then if artifact.id == name]
        if len(here) == len(there) == 1:
            found.append((here[0], there[0]))
            continue
        for artifact in here:
            like = next((a for a in there if _place(a) == _place(artifact)), None)
            found.append((artifact, like))
            if like is not None:
                there.remove(like)
        found += [(None, artifact) for artifact in there]
    return found


def _place(artifact: ArtifactReport) -> tuple[str, str]:
    return artifact.path, device(artifact)


def _presence(
    report: Report, baseline: Report, now: ArtifactReport | None, then: ArtifactReport | None
) -> Check:
    if now is not None:
        label = labels(report.artifacts)[report.artifacts.index(now)]
        return Check(label, now.path, "presence", "pass", "new: the baseline does not have it")
    if then is None:
        raise ValueError("a pair of nothing")
    label = labels(baseline.artifacts)[baseline.artifacts.index(then)]
    return Check(label, then.path, "presence", "fail", "the baseline has it, here it is missing")


def _size(now: ArtifactReport, then: ArtifactReport, slack: float) -> tuple[Verdict, str]:
    if not then.bytes:
        return "not-run", "the baseline does not say its size"
    if not now.bytes:
        return "not-run", "it has no size: its file is gone"
    limit = math.floor(then.bytes * (1 + slack / 100))
    if now.bytes <= limit:
        return "pass", ""
    return "fail", (
        f"{now.bytes:,} bytes, in the baseline {then.bytes:,}; "
        f"the limit is {limit:,} ({slack:g} % more)"
    )


def _parity(now: ArtifactReport, then: ArtifactReport, slack: float) -> tuple[Verdict, str]:
    """The worst answer over the outputs of the baseline."""
    if now.parity.verdict == "not-run":
        return "not-run", now.parity.reason or "parity was not checked"
    if then.parity.verdict == "not-run":
        return "not-run", f"the baseline has no parity: {then.parity.reason}"
    outputs = {output.name: output for output in now.parity.outputs}
    answers = [_output(outputs.get(o.name), o, slack) for o in then.parity.outputs]
    order = GRAVEST_FIRST
    nothing: tuple[Verdict, str] = ("not-run", "the baseline tells of no output")
    return min(answers, key=lambda answer: order.index(answer[0]), default=nothing)


def _output(now: OutputParity | None, then: OutputParity, slack: float) -> tuple[Verdict, str]:
    if now is None:
        return "fail", f"{then.name}: the baseline has this output, here it is missing"
    if not math.isfinite(then.worst_ratio):
        return "not-run", f"{then.name}: the baseline could not be compared with its reference"
    share = share_of(now, then.tolerance)
    if share is None:
        return "not-run", (
            f"{then.name}: {len(now.errors)} samples, the tolerance of the baseline has "
            f"{len(then.tolerance.rtol)}"
        )
    limit = slack * max(then.worst_ratio, _one_rounding(then.tolerance))
    if share <= limit:
        return "pass", ""
    return "fail", (
        f"{then.name}: uses {_percent(share)} of its tolerance, in the baseline "
        f"{_percent(then.worst_ratio)}; the limit is {_percent(limit)} ({slack:g} times)"
    )


def share_of(output: OutputParity, tolerance: Tolerance) -> float | None:
    """The largest share that a row's error has of ``tolerance``; None when rows differ in number.

    An output that could not be compared at all exceeds every tolerance.
    """
    if not output.errors:
        return math.inf
    if len(tolerance.rtol) not in (1, len(output.errors)):
        return None
    allowed = tolerance.for_scales(np.array(output.scales))
    return float((np.array(output.errors) / np.maximum(allowed, np.finfo(np.float64).tiny)).max())


def _one_rounding(tolerance: Tolerance) -> float:
    """The share of a derived tolerance that one root mean square of rounding has.

    An artifact that happened to agree bit for bit may round again.
    """
    numbers = [tolerance.derivation.get(name) for name in ("lambda", "factor")]
    factors = [n for n in numbers if isinstance(n, float) and n > 0]
    return 1 / math.prod(factors) if len(factors) == 2 else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
