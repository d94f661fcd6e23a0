"""What a check found, kept as values: sentences are made of them where they are shown.

A :class:`Finding` is a kind out of :data:`KINDS` and the values that fill its sentence. The kind
says which part of a verdict it belongs to and what it makes of it, so programs read the kind and
nobody takes a sentence apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from levit_export.core.values import GRAVEST_FIRST, Verdict

Part = Literal["answers", "shape", "weights", "claims", "placement", "hint"]
"""What a finding is about: the numbers, the form of the outputs, the tensors in the file, what
file and manifest say of themselves, where ops would run; or a hint at the cause, which changes no
verdict."""


@dataclass(frozen=True)
class FindingKind:
    """A kind of finding: its part, its verdict, and its sentence with the values' names."""

    part: Part
    verdict: Verdict
    sentence: str


KINDS: Mapping[str, FindingKind] = {
    # --- answers: what the artifact computes -----------------------------------------------------
    "no-samples": FindingKind("answers", "fail", "no samples were compared"),
    "run-failed": FindingKind("answers", "fail", "{text}"),
    "not-finite": FindingKind(
        "answers", "fail", "NaN or infinity on {count:.0f} of {rows:.0f} samples, first {sample}"
    ),
    "too-far": FindingKind(
        "answers",
        "fail",
        "error {error:.2e} on {sample} exceeds the tolerance {allowed:.2e}",
    ),
    "decided-flips": FindingKind(
        "answers", "fail", "{count:.0f} top-1 flips that rounding does not excuse"
    ),
    "reference-not-finite": FindingKind(
        "answers",
        "inconclusive",
        "the reference itself answers NaN or infinity on {count:.0f} of {rows:.0f} samples, first "
        "{sample}: mend its weights",
    ),
    "untrained": FindingKind(
        "answers",
        "inconclusive",
        "this check decides nothing: {text}; check trained weights",
    ),
    "no-row-decides": FindingKind(
        "answers",
        "inconclusive",
        "this check decides nothing: the model's answers hardly differ between samples, so a "
        "wrong file would pass too. They vary by {spread:.1e} and reach {scale:.1e}, and the "
        "tolerance is {allowed:.1e}; check trained weights, or a finer precision or tolerance",
    ),
    "some-rows-decide": FindingKind(
        "answers",
        "pass",
        "only {count:.0f} of {rows:.0f} samples can show a fault; on the others the tolerance is "
        "as large as the model's own variation: {names}",
    ),
    "no-tolerance": FindingKind(
        "answers",
        "inconclusive",
        "the largest error is {error:.1e}, {relative:.1e} of the largest answer to {sample}, and "
        "what may be accepted is not known: {text}; give --rtol or --atol",
    ),
    "oldest-that-passes": FindingKind(
        "answers", "pass", "{version} is the oldest tried that passes ({others})"
    ),
    "runtimes-agree": FindingKind(
        "answers",
        "pass",
        "{asset} and {package} agree on the same network in {precision}: at most {error:.1e} of "
        "an image's largest value apart, {share:.0f} % of what two roundings may differ by; "
        "top-1 is the same on {same:.0f} of {rows:.0f} samples",
    ),
    "runtimes-differ": FindingKind(
        "answers",
        "fail",
        "{asset} and {package} lie {error:.2e} apart on {sample}, and two roundings of one "
        "network at most {allowed:.2e}",
    ),
    "not-run": FindingKind("answers", "not-run", "{text}"),
    "not-asked": FindingKind("answers", "not-run", "parity was not asked for"),
    # --- shape: the form of what it gives --------------------------------------------------------
    "missing-output": FindingKind("shape", "fail", "output {name!r} is missing"),
    "no-outputs": FindingKind("shape", "fail", "the reference has no outputs"),
    "no-values": FindingKind("shape", "fail", "the output has no values"),
    "wrong-shape": FindingKind("shape", "fail", "shape {found}, expected {expected}"),
    "wrong-type": FindingKind("shape", "fail", "type {found}, expected floating point"),
    # --- weights: the tensors in the file --------------------------------------------------------
    "missing-weights": FindingKind(
        "weights",
        "fail",
        "{count:.0f} of {tensors:.0f} weight tensors are not in the file as the checkpoint has "
        "them: {names}",
    ),
    "strange-constants": FindingKind(
        "weights",
        "fail",
        "{count:.0f} constants of the file are not tensors of the checkpoint: {names}",
    ),
    "weights-not-looked-at": FindingKind(
        "weights", "inconclusive", "weights not looked at: {text}"
    ),
    "answers-only": FindingKind(
        "weights",
        "pass",
        "answers only: the file is not of this toolchain, its weights were not looked at",
    ),
    # --- claims: what file and manifest say of themselves ----------------------------------------
    "altered-files": FindingKind(
        "claims", "fail", "the directory was altered after it was written: {text}"
    ),
    "contradiction": FindingKind("claims", "fail", "{text}"),
    "unlisted-files": FindingKind("claims", "inconclusive", "{text}"),
    # --- placement: which device would execute the ops -------------------------------------------
    "enough-on-ane": FindingKind(
        "placement",
        "pass",
        "{share:.1f} % of the estimated work is on the Neural Engine, {least:g} % is the least",
    ),
    "too-little-on-ane": FindingKind(
        "placement",
        "fail",
        "{share:.1f} % of the estimated work is on the Neural Engine, {least:g} % is the least",
    ),
    "placement-unknown": FindingKind("placement", "not-run", "{text}"),
    # --- hints at a cause ------------------------------------------------------------------------
    "coarser-arithmetic": FindingKind(
        "hint",
        "pass",
        "the file is right in float32 (relative error {error:.1e}); by default this runtime "
        "computes in {type} on this processor: {remedy}",
    ),
    "float16-overflow": FindingKind(
        "hint",
        "pass",
        "{block} reaches {peak:.3g}{more}, float16 ends at 65504: leave it in float32 with "
        "--keep {block}, or let --precision {format}=auto find out",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that a check found: a kind of :data:`KINDS`, the output if it is about one."""

    kind: str
    values: Mapping[str, float | str] = field(default_factory=dict)
    output: str = ""

    @property
    def part(self) -> Part:
        """The part of the check that it belongs to."""
        return KINDS[self.kind].part

    @property
    def verdict(self) -> Verdict:
        """The verdict that it leads to by itself."""
        return KINDS[self.kind].verdict

    @property
    def sentence(self) -> str:
        """The finding in words, for people."""
        words = KINDS[self.kind].sentence.format(**self.values)
        return f"{self.output}: {words}" if self.output else words


def sentences(findings: Iterable[Finding]) -> str:
    """The findings in words, the gravest first, hints at a cause last."""
    ranked = sorted(findings, key=lambda f: (f.part == "hint", GRAVEST_FIRST.index(f.verdict)))
    return "; ".join(finding.sentence for finding in ranked)
