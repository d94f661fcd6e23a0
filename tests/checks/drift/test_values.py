"""The map as plain data, and the sentences."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from levit_export.checks.drift import verdict
from levit_export.checks.drift.values import DriftFinding, DriftMap, DriftRow, DriftStage, to_json
from levit_export.checks.drift.verdict import Circumstances

BLOCKS = {"a": "stem.0", "b": "stage1.block0.attention", "c": "head"}
CLEAN = DriftFinding("model", "none")


def row(tap: str, block: str, *, introduced: float, tolerance: float = 1e-3) -> DriftRow:
    """A row that uses some of its tolerance."""
    share = introduced / tolerance
    return DriftRow(
        tap,
        block,
        "openvino-int8",
        "exceeds" if share > 1 else "ok",
        accumulated=introduced,
        introduced=introduced,
        tolerance=tolerance,
        of_tolerance=share,
        sample="noise",
    )


def stage(*rows: DriftRow, wrong: tuple[str, ...] = ()) -> DriftStage:
    """An artifact's stage."""
    return DriftStage("openvino-int8", "artifact", "the program", rows, wrong_weights=wrong)


def about(precision: str = "int8", *, half: bool = False, overflowing: str = "") -> Circumstances:
    """What the verdict rests on."""
    return Circumstances("openvino", precision, half, frozenset([overflowing]), BLOCKS)


def test_json_has_no_infinity() -> None:
    """What JSON cannot hold becomes null, and the verdict is in it."""
    made = stage(DriftRow("stem.0", "stem.0", "x", "not-finite", introduced=math.inf))
    content = to_json(DriftMap("m", ("a",), (made,), (CLEAN,)))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["stages"][0]["rows"][0]["introduced"] is None
    assert (content["verdict"], content["schema"]) == ("pass", 1)


def test_a_map_without_findings_is_no_pass() -> None:
    """Nothing found is not nothing wrong."""
    assert DriftMap("m", (), (), ()).verdict == "fail"


def test_a_grid_that_does_not_fit_is_the_precision() -> None:
    """A quantised block somewhat beyond its tolerance is a matter of precision."""
    tap = "stage1.block0.attention.softmax"
    made = stage(row(tap, "stage1.block0.attention", introduced=6e-3))
    finding = verdict.of_artifact(made, CLEAN, about())
    assert (finding.cause, finding.block) == ("precision", "stage1.block0.attention")
    assert finding.sentence == (
        f"{tap} in openvino-int8 introduces 6.0e-03 (tolerance 1.0e-03) on noise; stages "
        "(i)–(iii) are clean: the runtime's precision is at fault. Try --precision openvino=auto, "
        "or --keep stage1.block0.attention"
    )


def test_a_quantised_file_whose_answers_are_accepted_is_not_accused() -> None:
    """Parity's tolerance of the answers settles it, however coarse the grid of a block is."""
    coarse = row("stage1.block0.attention.out", "stage1.block0.attention", introduced=2e-2)
    answer = row("logits", "head", introduced=1e-4)
    borne = verdict.of_artifact(
        stage(coarse, replace(answer, accumulated_of_tolerance=0.9)), CLEAN, about()
    )
    exceeded = verdict.of_artifact(
        stage(coarse, replace(answer, accumulated_of_tolerance=1.1)), CLEAN, about()
    )
    assert (borne.clean, exceeded.clean) == (True, False)
    assert "the answers stay within their tolerance" in borne.sentence
    whole = stage(coarse, replace(answer, accumulated_of_tolerance=0.9))
    assert not verdict.of_artifact(whole, CLEAN, about("fp32")).clean


def test_of_coarse_blocks_the_one_that_no_grid_explains_is_guilty() -> None:
    """The first that is another function, else the one that uses most of its tolerance."""
    coarse = row("stem.0", "stem.0", introduced=2e-3)
    coarser = row("stage1.block0.attention.out", "stage1.block0.attention", introduced=8e-3)
    wrong = row("logits", "head", introduced=1e-1)
    answer = replace(row("x", "head", introduced=0.0), accumulated_of_tolerance=2.0)
    finding = verdict.of_artifact(stage(coarse, coarser, answer), CLEAN, about())
    assert (finding.block, finding.cause) == ("stage1.block0.attention", "precision")
    finding = verdict.of_artifact(stage(coarse, coarser, wrong, answer), CLEAN, about())
    assert (finding.block, finding.cause) == ("head", "conversion")


def test_a_file_without_taps_names_no_block() -> None:
    """Of a file from elsewhere only the answers can be held against anything."""
    fused = DriftRow("stem.0", "stem.0", "x", "fused")
    answer = replace(row("logits", "head", introduced=1.0), accumulated_of_tolerance=9.0)
    finding = verdict.of_artifact(stage(fused, answer), CLEAN, about("fp32"))
    assert (finding.cause, finding.block) == ("conversion", "")
    assert "none of the taps" in finding.sentence


def test_a_runtime_that_computes_in_less_by_default_is_no_block() -> None:
    """A file that is right in bfloat16 fails because nobody asked for that: no block is named."""
    untold = Circumstances("onnx", "bf16", blocks=BLOCKS, remedy="say f32", is_accepted=False)
    sound = stage(row("stem.0", "stem.0", introduced=1e-4))
    finding = verdict.of_artifact(sound, CLEAN, untold)
    assert (finding.cause, finding.block, finding.clean) == ("precision", "", False)
    assert finding.sentence.endswith("by default on this processor; say f32")
    assert verdict.of_artifact(sound, CLEAN, replace(untold, is_accepted=True)).clean
    wrong = stage(row("stem.0", "stem.0", introduced=1e-4), row("a", "head", introduced=1.0))
    assert verdict.of_artifact(wrong, CLEAN, untold).block == "head"


def test_a_provider_that_overflows_in_float16() -> None:
    """Of a file in float32 the provider's setting is what can be changed, and no block's."""
    made = stage(row("stem.0", "stem.0", introduced=1.0))
    told = Circumstances("onnx", "fp16", True, frozenset(["stem.0"]), BLOCKS, "say f32")
    finding = verdict.of_artifact(made, CLEAN, told)
    assert (finding.cause, finding.sentence.endswith("ends at 65504: say f32")) == (
        "precision",
        True,
    )


def test_a_tolerance_below_float32_is_said_to_be() -> None:
    """Where no block is at fault, the remedy fits the precision."""
    answer = replace(row("logits", "head", introduced=1e-7), accumulated_of_tolerance=9.0)
    fp32 = DriftStage("onnx-fp32", "artifact", "", (answer,), precision="fp32")
    assert "a tolerance below it cannot be met" in verdict.accumulated(fp32).sentence
    half = DriftStage("coreml-fp16", "artifact", "", (answer,), precision="fp16")
    assert "--keep head" in verdict.accumulated(half).sentence


def test_far_beyond_a_grid_is_another_function() -> None:
    """No grid explains an error that is many times what quantising costs."""
    made = stage(row("stem.0", "stem.0", introduced=1.0))
    assert verdict.of_artifact(made, CLEAN, about()).cause == "conversion"


def test_overflow_is_the_precision_only_where_it_is_computed_in() -> None:
    """A format that computes in float32 has no excuse in the range of float16."""
    made = stage(row("stem.0", "stem.0", introduced=1.0))
    half = verdict.of_artifact(made, CLEAN, about("fp16", half=True, overflowing="stem.0"))
    whole = verdict.of_artifact(made, CLEAN, about("fp16", overflowing="stem.0"))
    assert (half.cause, whole.cause) == ("precision", "conversion")
    assert "--keep stem.0" in half.sentence


def test_the_first_of_weights_and_taps_is_named() -> None:
    """A tensor that is not in the file is blamed unless a block before it is faulty already."""
    late = row("head", "head", introduced=1.0)
    early = row("stem.0", "stem.0", introduced=1.0)
    wrong = ("b.weight",)
    assert verdict.of_artifact(stage(late, wrong=wrong), CLEAN, about()).cause == "weights"
    assert verdict.of_artifact(stage(early, wrong=wrong), CLEAN, about()).block == "stem.0"


def test_small_errors_that_are_too_many_say_so() -> None:
    """Where the root mean square gives a block away, that is what the sentence quotes."""
    found = DriftRow(
        "pool", "head", "x", "exceeds",
        introduced=1e-4, tolerance=1e-3, introduced_rms=9e-5, rms_tolerance=1e-5,
        of_tolerance=9.0, sample="noise",
    )  # fmt: skip
    assert verdict.said(found) == "introduces an rms of 9.0e-05 (tolerance 1.0e-05) on noise"


def test_the_first_stage_is_guilty() -> None:
    """What a pass did is not the program's fault."""
    bad = row("stem.0", "stem.0", introduced=1.0)
    stages = (
        DriftStage("pass fuse_batchnorm", "pass", "", (bad,)),
        DriftStage("program", "program", "", (bad,)),
    )
    finding = verdict.of_chain(stages)
    assert (finding.cause, finding.stage) == ("pass", "pass fuse_batchnorm")
    assert "--skip-pass fuse_batchnorm" in finding.sentence
