"""From the stages of a chain to who is at fault, in one sentence that a person can act on.

The first stage with a fault is guilty: what comes after computes what it was given. Within a stage
it is the first block in the network's order, by its taps and by the weights that the file does not
hold: a distance in float16 cannot see a tensor that is one percent off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from levit_export.checks.drift.values import Cause, DriftFinding, DriftRow, DriftStage
from levit_export.core.precisions import GRIDS
from levit_export.core.values import FLOAT16_MAX

ANOTHER_FUNCTION = 16.0
"""A quantised block that uses its tolerance so many times over computes something else; below may
be a grid that does not fit. Largest of a sound file seen: 8.7 (OpenVINO, ``int8``), rounded up to
a power of two."""

CLEAN = "(i)–(iii)"


@dataclass(frozen=True)
class Circumstances:
    """What a verdict on an artifact rests on besides its rows.

    ``precision`` is the artifact's, or the type that its runtime computes in where that is
    coarser. ``remedy`` then tells how to have float32 of it, and ``is_accepted`` whether that type
    was asked for. ``overflowing`` are taps at which the rounded network itself overflows in
    PyTorch, ``half`` whether the format computes in float16, ``blocks`` the public names by module
    path.
    """

    format: str = ""
    precision: str = "fp32"
    half: bool = False
    overflowing: frozenset[str] = frozenset()
    blocks: Mapping[str, str] | None = None
    remedy: str = ""
    is_accepted: bool = True


def of_chain(stages: Sequence[DriftStage]) -> DriftFinding:
    """On the stages before any file."""
    for stage in stages:
        fault = stage.first_fault
        if fault is None:
            continue
        cause: Cause = "program"
        remedy = "torch.export captured another function: report the model with its torch version"
        if stage.kind == "checkpoint":
            cause = "checkpoint"
            remedy = (
                "the module that was exported holds other values than the checkpoint: "
                "load it again in a fresh module"
            )
        elif stage.kind == "pass":
            cause = "pass"
            name = stage.name.removeprefix("pass ")
            remedy = f"the pass is at fault: export with --skip-pass {name} and report the model"
        sentence = f"{fault.tap} in {stage.name} {said(fault)}; {remedy}"
        return DriftFinding("model", cause, stage.name, fault.block, fault.tap, sentence)
    return DriftFinding("model", "none", sentence="checkpoint, passes and program are clean")


def of_artifact(stage: DriftStage, chain: DriftFinding, about: Circumstances) -> DriftFinding:
    """On a file, given the verdict on the stages before it."""
    if not chain.clean:
        return DriftFinding(
            stage.name,
            chain.cause,
            chain.stage,
            chain.block,
            chain.tap,
            f"{stage.name} was made of what is wrong already: {chain.sentence}",
        )
    if stage.failure:
        return DriftFinding(
            stage.name, "conversion", stage.name, sentence=f"{stage.name}: {stage.failure}"
        )
    fault = stage.first_fault
    if fault is not None and all(row.status == "fused" or _is_answer(row) for row in stage.rows):
        # A file of other makers: its answers are off, and nothing inside it has a known name.
        sentence = (
            f"{fault.tap} in {stage.name} is off, and the file has none of the taps: no block can "
            "be named. Export the checkpoint with levit-export, and look at that"
        )
        return DriftFinding(stage.name, "conversion", stage.name, tap=fault.tap, sentence=sentence)
    wrong = first_wrong(stage, about.blocks or {})
    if wrong is not None and (fault is None or not _is_before(fault.block, wrong[0], about)):
        return _weights(stage, wrong, fault)
    return _clean(stage, about) if fault is None else _fault(stage, fault, about)


def first_wrong(stage: DriftStage, blocks: Mapping[str, str]) -> tuple[str, str] | None:
    """Block and name of the first tensor, in the network's order, that the file does not hold."""
    named = [(block_of_weight(name, blocks), name) for name in stage.wrong_weights]
    order = list(blocks.values())
    known = [pair for pair in named if pair[0] in order]
    return min(known, key=lambda pair: order.index(pair[0]), default=next(iter(named), None))


def block_of_weight(name: str, blocks: Mapping[str, str]) -> str:
    """The innermost block that a tensor, by its name in the module, belongs to; empty if none."""
    inside = [path for path in blocks if name.startswith(f"{path}.")]
    return blocks[max(inside, key=len)] if inside else ""


def _is_before(one: str, other: str, about: Circumstances) -> bool:
    order = list((about.blocks or {}).values())
    return one in order and other in order and order.index(one) < order.index(other)


def _weights(stage: DriftStage, wrong: tuple[str, str], fault: DriftRow | None) -> DriftFinding:
    block, tensor = wrong
    more = len(stage.wrong_weights) - 1
    others = f" (and {more} more tensors)" if more else ""
    seen = "no tap shows it beyond rounding" if fault is None else f"{fault.tap} {said(fault)}"
    sentence = (
        f"{block or tensor} in {stage.name}: the file does not hold {tensor}{others} as the "
        f"checkpoint and the passes made it; {seen}; stages {CLEAN} are clean: the weights in the "
        "file are at fault. Export it anew"
    )
    return DriftFinding(
        stage.name, "weights", stage.name, block, fault.tap if fault else "", sentence
    )


def _fault(stage: DriftStage, first: DriftRow, about: Circumstances) -> DriftFinding:
    is_quantised = about.precision in GRIDS
    if is_quantised and _is_borne(stage):
        return _coarse(stage)
    fault = _guilty(stage) if is_quantised else first
    cause: Cause = "conversion"
    if about.half and fault.tap in about.overflowing:  # float16 itself fails there
        cause = "precision"
        remedy = (
            f"{fault.block} leaves the range of float16, which ends at {FLOAT16_MAX:.0f}: "
            + (
                about.remedy
                or f"keep it in float32 with --keep {fault.block}, or let --precision "
                f"{about.format}=auto find out"
            )
        )
    elif is_quantised and fault.status == "exceeds" and _share(fault) < ANOTHER_FUNCTION:
        cause = "precision"
        remedy = (
            f"the runtime's precision is at fault. Try --precision {about.format}=auto, or "
            f"--keep {fault.block}"
        )
    elif fault.status == "missing":
        remedy = "the file gives no such output: export it anew"
    else:
        remedy = (
            f"what the file computes there is at fault, not its weights. Look at {fault.block} in "
            "the file, or run it with another version of the runtime"
        )
    sentence = f"{fault.tap} in {stage.name} {said(fault)}; stages {CLEAN} are clean: {remedy}"
    return DriftFinding(stage.name, cause, stage.name, fault.block, fault.tap, sentence)


def _share(row: DriftRow) -> float:
    return row.of_tolerance or 0.0


def _is_borne(stage: DriftStage) -> bool:
    """Whether the answers are what parity accepts, however the blocks share out the error.

    Quantisers settle ranges and grids otherwise than the simulation does: blocks may be coarser
    and the whole as good.
    """
    answers = [row.accumulated_of_tolerance or 0.0 for row in stage.rows if _is_answer(row)]
    is_only_coarse = all(row.status == "exceeds" for row in stage.rows if row.is_fault)
    return bool(answers) and max(answers) <= 1 and is_only_coarse


def _is_answer(row: DriftRow) -> bool:
    return row.accumulated_of_tolerance is not None


def _guilty(stage: DriftStage) -> DriftRow:
    """The fault of a quantised file: the first that no grid explains, else the largest."""
    faults = [row for row in stage.rows if row.is_fault]
    beyond = (r for r in faults if r.status != "exceeds" or _share(r) >= ANOTHER_FUNCTION)
    return next(beyond, max(faults, key=_share))


def _coarse(stage: DriftStage) -> DriftFinding:
    faults = [row for row in stage.rows if row.is_fault]
    worst = max(faults, key=_share)
    more = f" (and {len(faults) - 1} more taps)" if len(faults) > 1 else ""
    sentence = (
        f"{worst.tap}{more} in {stage.name} {said(worst)}: its grid is coarser than the simulated "
        "one, and the answers stay within their tolerance"
    )
    return DriftFinding(stage.name, "none", sentence=sentence)


def said(row: DriftRow) -> str:
    """What a faulty row shows, as a predicate."""
    after = f" (since {row.fused_before[0]}, which is fused away)" if row.fused_before else ""
    if row.status == "not-finite":
        return f"holds {row.not_finite} values that are NaN or infinite{after}"
    if row.status == "missing":
        return "is missing from the results"
    if row.status == "shape":
        return "has another shape"
    introduced, tolerance, what = row.introduced, row.tolerance, ""
    if (introduced or 0) <= (tolerance or 0):  # small errors, and too many of them
        introduced, tolerance, what = row.introduced_rms, row.rms_tolerance, "an rms of "
    return f"introduces {what}{introduced:.1e} (tolerance {tolerance:.1e}) on {row.sample}{after}"


def _clean(stage: DriftStage, about: Circumstances) -> DriftFinding:
    measured = [row for row in stage.rows if row.of_tolerance is not None]
    if not measured:
        return DriftFinding(
            stage.name, "conversion", stage.name, sentence=f"{stage.name} has none of the taps"
        )
    if not about.is_accepted:
        sentence = (
            f"no block of {stage.name} is at fault: it is what {about.precision} makes of it, in "
            f"which this runtime computes by default on this processor; {about.remedy}"
        )
        return DriftFinding(stage.name, "precision", stage.name, sentence=sentence)
    worst = max(measured, key=lambda row: row.of_tolerance or 0.0)
    return DriftFinding(
        stage.name,
        "none",
        sentence=f"every block of {stage.name} stays within its tolerance; nearest is "
        f"{worst.tap}, which uses {100 * (worst.of_tolerance or 0):.0f} % of it",
    )


def accumulated(stage: DriftStage) -> DriftFinding:
    """On an artifact whose answers are too far off although no block is at fault."""
    rows = [row for row in stage.rows if row.introduced is not None]
    answers = [row.accumulated_of_tolerance or 0.0 for row in rows if _is_answer(row)]
    if answers and max(answers) <= 1:
        sentence = (
            f"drift accuses no block of {stage.name}: its answers are the checkpoint's, within "
            "their tolerance. The reference that the check was given is at fault: export again"
        )
        return DriftFinding(stage.name, "none", sentence=sentence)
    worst = max(rows, key=lambda row: row.introduced or 0.0)
    last = rows[-1]
    remedy = f"Try a higher precision, or --keep {worst.block}"
    if stage.precision == "fp32":
        remedy = "That is what float32 costs here: a tolerance below it cannot be met"
    sentence = (
        f"no block of {stage.name} leaves its tolerance: their errors add up to "
        f"{last.accumulated:.1e} at {last.tap}, most of it from {worst.tap} "
        f"({worst.introduced:.1e}). {remedy}"
    )
    return DriftFinding(stage.name, "accumulation", stage.name, worst.block, worst.tap, sentence)
