"""The gate of a build: every question asked of a report, each answered by a verdict.

Reports go in and checks come out; nothing is read, run or shown here. The first questions are
about one report by itself: parity, weights and claims of every artifact. The others hold it
against an earlier one: what is missing, worse, larger or slower.

Each figure may get worse by its slack and no more, and a regression names both figures and the
limit. Only what both reports know is compared, and what cannot be compared is said.

Latency needs a reference, for the machine may be another one, or busy. With ``a`` the medians of
the artifact and ``r`` those of what was measured in the same run, eager PyTorch or the machine's
matrix product, now and then (in the baseline)

    growth = (a_now / r_now) / (a_then / r_then)

A machine that is slower as a whole slows ``a_now`` and ``r_now`` alike. An artifact has regressed
when the 95 % bootstrap interval of ``growth`` (Efron 1979) lies above ``1 + slack``: rounds are
drawn again within each run, the same ones of both its series. Of the matrix products a report has
the median rate alone, so their own spread is not in the interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np

from levit_export.checks.findings import sentences
from levit_export.checks.parity import OutputParity
from levit_export.checks.results import ArtifactReport
from levit_export.checks.timing import EAGER, INTERVAL, TimingReport, drawn_ratios
from levit_export.core.errors import DataError, UsageError
from levit_export.core.values import GRAVEST_FIRST, Tolerance, Verdict, overall
from levit_export.reports.report import Report, device, labels

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

PRODUCTS = "the machine's matrix products"
FEWEST = 10
"""Rounds below which a bootstrap of the median says little: nothing is concluded then."""

PARITY, SIZE, LATENCY = (f"{figure} against baseline" for figure in ("parity", "size", "latency"))


@dataclass(frozen=True)
class Check:
    """One question asked of one artifact, and the answer; only a pass can do without a reason.

    ``artifact`` is what people call it, ``path`` where it lies as the report says.
    """

    artifact: str
    path: str
    name: str
    verdict: Verdict
    reason: str = ""


def of_report(
    artifacts: Sequence[ArtifactReport], *, require_audit: bool = False
) -> tuple[Check, ...]:
    """Parity of every artifact, and weights, claims and placement where they were looked at.

    With ``require_audit`` weights that nobody vouches for are a check that was not run.
    The first of them that failed says where, if drift knows.
    """
    found: list[Check] = []
    for label, artifact in zip(labels(artifacts), artifacts, strict=True):
        checks = _of_parts(label, artifact, require_audit=require_audit)
        failed = next((check for check in checks if check.verdict == "fail"), None)
        if failed is not None and artifact.drift is not None:
            where = f"{failed.reason}. Drift: {artifact.drift.sentence}"
            checks[checks.index(failed)] = replace(failed, reason=where)
        found += checks
    return tuple(found)


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """The gravest answer; ``not-run`` where there is none."""
    return overall(check.verdict for check in checks)


def _of_parts(label: str, artifact: ArtifactReport, *, require_audit: bool) -> list[Check]:
    """A check for each part that was looked at: the answers always, with hints at the cause."""
    found, audit = artifact.parity, artifact.parity.weights
    answers, weights, claims = (
        found.of("answers", "shape"),
        found.of("weights"),
        found.of("claims"),
    )
    # Where nothing but the answers was looked at, they are what a verdict without findings is of.
    looked_at = bool(found.outputs or weights or claims)
    verdict = overall([each.verdict for each in answers] + ["pass"] * looked_at)
    # A hint explains a failure; without one it would read like an accusation.
    asides = found.of("hint") if verdict == "fail" else ()
    checks = [(verdict, "parity", sentences((*answers, *asides)))]
    if audit is not None:
        is_lacking = require_audit and audit.answers_only
        least: Verdict = "not-run" if is_lacking else "pass"
        checks.append(
            (overall([*(w.verdict for w in weights), least]), "weights", sentences(weights))
        )
    for part, name in ((claims, "claims"), (found.of("placement"), "neural engine")):
        if part:
            checks.append((overall(each.verdict for each in part), name, sentences(part)))
    return [Check(label, artifact.path, name, verdict, reason) for verdict, name, reason in checks]


def recheck(saved: Report, tolerance: Tolerance) -> Report:
    """``saved`` with every output judged by ``tolerance``, a single number for all samples.

    Nothing is run again: a report keeps the error and the scale of every sample. All that no
    tolerance can mend stays as it was found: outputs that are missing or hold NaN, flips that
    rounding does not excuse, weights, an altered directory, an untrained network, and that two
    runtimes differ. Raises ``DataError`` for a report that does not keep its samples' errors.
    """
    for artifact, label in zip(saved.artifacts, labels(saved.artifacts), strict=True):
        incomparable = {finding.output for finding in artifact.parity.findings}
        for output in artifact.parity.outputs:
            kept = output.errors and len(output.spreads) == len(output.errors)
            if not kept and (output.errors or output.name not in incomparable):
                raise DataError(
                    f"the report does not keep the errors of {label} {output.name!r} by sample",
                    remedy="Make it anew with this version: levit-export check PATH --json FILE.",
                )
    artifacts = tuple(
        replace(artifact, parity=artifact.parity.rejudged(tolerance))
        for artifact in saved.artifacts
    )
    verdict = overall(artifact.parity.verdict for artifact in artifacts)
    return replace(saved, verdict=verdict, artifacts=artifacts)


# --- against an earlier report ---------------------------------------------------------------


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
        refuse_untimed(baseline)
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
            answer = _latency((report, now), (baseline, then), slack.latency)
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
    # What agreed to the last bit may be off by one rounding on another machine.
    limit = slack * max(then.worst_ratio, _one_rounding(then.tolerance))
    if share <= limit:
        return "pass", ""
    return "fail", (
        f"{then.name}: uses {100 * share:.3g} % of its tolerance, in the baseline "
        f"{100 * then.worst_ratio:.3g} %; the limit is {100 * limit:.3g} % ({slack:g} times)"
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


@dataclass(frozen=True)
class Growth:
    """How many times slower than in the baseline, with the bootstrap interval.

    ``now`` and ``then`` are latencies over that of the reference in the same run.
    """

    against: str
    now: float
    then: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """The formula's ``growth``."""
        return self.now / self.then


def refuse_untimed(baseline: Report) -> None:
    """Raise ``UsageError`` when nothing in the baseline was timed."""
    if not any(_was_measured(artifact.timing) for artifact in baseline.artifacts):
        raise UsageError(
            "the baseline holds no latency to compare with",
            remedy="Take the report of an export without --no-bench, or leave out "
            "--latency-slack.",
        )


def _was_measured(timed: TimingReport | None) -> TypeGuard[TimingReport]:
    return timed is not None and timed.verdict == "pass" and bool(timed.seconds)


def _latency(
    now: tuple[Report, ArtifactReport], then: tuple[Report, ArtifactReport], slack: float
) -> tuple[Verdict, str] | None:
    """Whether an artifact is more than ``slack`` percent slower than in the baseline, and why.

    None when the baseline has no latency of it: Core ML, say, where there was no Mac.
    """
    timed, before = now[1].timing, then[1].timing
    if not _was_measured(before):
        return None
    if not _was_measured(timed):
        return "not-run", "not timed" if timed is None else f"not timed: {timed.reason}"
    if problem := _incomparable(timed, before):
        return "not-run", problem
    found = growth((now[0], timed), (then[0], before))
    if found is None:
        return "not-run", (
            "no reference was timed beside it in both runs; name the model (--checkpoint FILE)"
        )
    if found.low <= 1 + slack / 100:
        return "pass", ""
    return "fail", (
        f"takes {found.now:.3g} times as long as {found.against}, in the baseline "
        f"{found.then:.3g}: {100 * (found.factor - 1):.0f} % slower, 95 % interval "
        f"{100 * (found.low - 1):.0f} to {100 * (found.high - 1):.0f} %; the limit is {slack:g} %"
    )


def _incomparable(timed: TimingReport, before: TimingReport) -> str:
    """Why the ratios of two measurements say nothing of each other, or empty."""
    for name in ("threads", "batch"):
        here, there = getattr(timed, name), getattr(before, name)
        if here != there:
            return f"timed with {name} {here}, in the baseline {there}: the ratios differ by that"
    fewest = min(len(timed.seconds), len(before.seconds))
    if fewest < FEWEST:
        return f"{fewest} rounds were timed, at least {FEWEST} are needed (--iters)"
    return ""


def growth(now: tuple[Report, TimingReport], then: tuple[Report, TimingReport]) -> Growth | None:
    """The formula's ``growth``, against eager PyTorch where both runs have it, else the products.

    None when neither reference is in both runs.
    """
    for against in (EAGER, PRODUCTS):
        here, there = _beside(against, *now), _beside(against, *then)
        if here is None or there is None:
            continue
        generator = np.random.default_rng(0)
        medians, drawn = [], []
        for a, r in (here, there):
            drawn.append(drawn_ratios(a, r, generator))
            medians.append(float(np.median(a) / np.median(r)))
        low, high = np.quantile(drawn[0] / drawn[1], INTERVAL)
        return Growth(against, medians[0], medians[1], low=float(low), high=float(high))
    return None


def _beside(
    against: str, report: Report, timed: TimingReport
) -> tuple[np.ndarray, np.ndarray] | None:
    """Seconds of the artifact and of the reference ``(rounds,)`` each; None without reference."""
    seconds = np.array(timed.seconds)
    if against == EAGER:
        eager = report.baselines.get(EAGER)
        if not _was_measured(eager) or len(eager.seconds) != len(seconds):
            return None
        return seconds, np.array(eager.seconds)
    if timed.efficiency is None:
        return None
    # Efficiency is ideal / median, and the ideal is what the products alone would take.
    return seconds, np.full_like(seconds, timed.efficiency * np.median(seconds))
