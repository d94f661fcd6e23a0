"""Parity: what passes, what fails, and in which words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from levit_export.checks.parity import (
    VARIATION,
    OutputParity,
    ParityReport,
    collect,
    compare_outputs,
    excess,
    not_run,
    run_failed,
)
from levit_export.core.errors import RuntimeFailedError
from levit_export.core.values import Session, Signature, Tensors, TensorSpec, Tolerance
from levit_export.inputs.samples import Samples

UNIT = 2.0**-53
"""Of float64, in which everything is compared."""


def _samples(count: int) -> Samples:
    inputs = np.arange(count * 3, dtype=np.float32).reshape(count, 3, 1, 1)
    names = tuple(f"image-{index}" for index in range(count))
    return Samples(names, inputs, np.full(count, -1), {})


def _signature(*names: str, batch: int | None = None) -> Signature:
    outputs = tuple(TensorSpec(name, (batch, 4)) for name in names)
    return Signature((TensorSpec("input", (batch, 3, 1, 1)),), outputs)


class _Everywhere(dict[str, Tolerance]):
    """One tolerance for every output that is asked for."""

    def __init__(self, tolerance: Tolerance) -> None:
        super().__init__()
        self.only = tolerance

    def __missing__(self, name: str) -> Tolerance:
        return self.only


def _given(rtol: float, *, atol: float = 0.0) -> Tolerance:
    return Tolerance(atol, (rtol,), "given")


def _everywhere(rtol: float) -> _Everywhere:
    return _Everywhere(_given(rtol))


def compare(
    reference: Session, candidate: Session, samples: Samples, tolerances: Mapping[str, Tolerance]
) -> ParityReport:
    """What a check does with two sessions: a candidate that cannot be run fails."""
    try:
        outputs = collect(candidate, samples)
    except RuntimeFailedError as error:
        return run_failed(error, candidate.runtime, samples)
    return compare_outputs(
        collect(reference, samples),
        outputs,
        samples,
        tolerances,
        expected=reference.signature,
        runtime=candidate.runtime,
    )


def _compare(
    reference: np.ndarray,
    candidate: np.ndarray | None,
    tolerance: Tolerance | None = None,
    *,
    doubt: str = "",
) -> ParityReport:
    return compare_outputs(
        {"logits": reference},
        {} if candidate is None else {"logits": candidate},
        _samples(len(reference)),
        _Everywhere(tolerance or _given(1e-3)),
        expected=_signature("logits"),
        runtime="fake 1.0",
        doubt=doubt,
    )


def _only(report: ParityReport) -> OutputParity:
    (output,) = report.outputs
    return output


LOGITS = np.array(
    [[4.0, 1.0, -2.0, 0.5], [-1.0, 8.0, 2.0, 3.0], [0.25, 0.5, 2.0, -16.0], [1.0, 0.0, 0.5, 0.75]]
)
"""Four answers whose best classes are 0, 1, 2, 0 and whose margins are 3, 5, 1.5 and 0.25."""


@dataclass
class FakeSession:
    """Answers with ``function`` of each image, and remembers the batches that it was given."""

    function: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    batch: int | None = None
    names: tuple[str, ...] = ("logits",)
    given: list[np.ndarray] = field(default_factory=list)

    @property
    def signature(self) -> Signature:
        """As fixed or open as asked for."""
        return _signature(*self.names, batch=self.batch)

    @property
    def runtime(self) -> str:
        """A made-up runtime."""
        return "fake 1.0"

    def run(self, inputs: Tensors) -> Mapping[str, np.ndarray]:
        """One call."""
        self.given.append(inputs["input"])
        return self.function(inputs["input"])


def _answer(images: np.ndarray) -> dict[str, np.ndarray]:
    """Logits that tell the images of ``_samples`` apart."""
    first = images[:, 0, 0, 0].astype(np.float64)
    return {"logits": np.stack([np.sin(first), np.cos(first), first % 5, -first % 7], axis=1)}


# --- what passes ----------------------------------------------------------------------------


def test_the_same_answers_pass() -> None:
    """An exact candidate passes, with every distance zero and every agreement whole."""
    report = _compare(LOGITS, LOGITS.copy())
    assert (report.verdict, report.reason) == ("pass", "")
    assert (report.samples, report.runtime) == (4, "fake 1.0")
    output = _only(report)
    assert (output.max_abs, output.max_rel, output.mean_abs, output.worst_ratio) == (0, 0, 0, 0)
    assert output.snr_db == math.inf
    # A sum of four products and two norms, each a few roundings.
    assert abs(output.cosine - 1) <= 16 * UNIT
    assert (output.top1_agreement, output.top5_agreement) == (1, 1)
    assert (output.decided_flips, output.undecided_flips) == (0, 0)


def test_an_error_within_the_tolerance_passes() -> None:
    """Half of what is allowed, everywhere, passes and is reported as half of the allowance."""
    allowed = 2.0**-10 * np.abs(LOGITS).max(axis=1, keepdims=True)
    report = _compare(LOGITS, LOGITS + allowed / 2, _given(2.0**-10))
    assert report.verdict == "pass"
    assert _only(report).worst_ratio == 0.5


def test_float16_answers_are_compared_in_float64() -> None:
    """A candidate in half precision is compared by its values, not by its type."""
    report = _compare(LOGITS, LOGITS.astype(np.float16), _given(2.0**-11))
    assert report.verdict == "pass"
    assert _only(report).max_abs == 0  # each of these numbers is one of float16


def test_outputs_that_were_not_asked_for_do_not_matter() -> None:
    """A candidate may give more than the reference has."""
    report = compare_outputs(
        {"logits": LOGITS},
        {"tap": np.zeros(3), "logits": LOGITS},
        _samples(4),
        _everywhere(0.0),
        expected=_signature("logits"),
        runtime="",
    )
    assert report.verdict == "pass"
    assert [output.name for output in report.outputs] == ["logits"]


def test_answers_of_any_rank_are_compared() -> None:
    """Outputs of rank 4 are compared row by row like those of rank 2."""
    maps = np.random.default_rng(0).standard_normal((3, 2, 4, 4))
    wrong = maps.copy()
    wrong[1, 1, 3, 2] += 1
    assert _compare(maps, maps.copy()).verdict == "pass"
    assert _only(_compare(maps, wrong)).worst_sample == "image-1"


# --- what fails, in its own words -------------------------------------------------------------


def test_a_missing_output_fails() -> None:
    """An output that the candidate lacks is named."""
    report = _compare(LOGITS, None)
    assert (report.verdict, report.reason) == ("fail", "output 'logits' is missing")
    assert report.outputs == ()


def test_one_missing_output_of_two_fails() -> None:
    """One good output does not make up for another that is missing."""
    report = compare_outputs(
        {"logits": LOGITS, "tokens": LOGITS},
        {"logits": LOGITS},
        _samples(4),
        _everywhere(0.0),
        expected=_signature("logits", "tokens"),
        runtime="",
    )
    assert (report.verdict, report.reason) == ("fail", "output 'tokens' is missing")
    assert [finding.kind for finding in report.findings] == ["missing-output"]


def test_one_wrong_output_of_two_fails_under_its_name() -> None:
    """A failure is reported with the output that it belongs to."""
    report = compare_outputs(
        {"logits": LOGITS, "tokens": LOGITS},
        {"logits": LOGITS, "tokens": LOGITS * 1.5},
        _samples(4),
        _everywhere(2.0**-10),
        expected=_signature("logits", "tokens"),
        runtime="",
    )
    assert report.verdict == "fail"
    assert report.reason.startswith("tokens: error ")
    assert "logits:" not in report.reason


@pytest.mark.parametrize(
    "shape",
    [(4, 5), (3, 4), (4, 4, 1), (16,), (4, 0), (0, 4)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_a_wrong_shape_fails(shape: tuple[int, ...]) -> None:
    """Another shape is reported with the one expected, and nothing is broadcast."""
    report = _compare(LOGITS, np.zeros(shape))
    assert report.verdict == "fail"
    assert report.reason == f"logits: shape {shape}, expected (4, 4)"
    assert math.isnan(_only(report).max_abs)
    assert _only(report).worst_ratio == math.inf


def test_a_single_column_is_not_broadcast() -> None:
    """A candidate that NumPy could stretch to the reference's shape is refused."""
    assert _compare(np.ones((4, 4)) * LOGITS[:, :1], LOGITS[:, :1]).reason.startswith(
        "logits: shape (4, 1)"
    )


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "object", "complex64"])
def test_a_wrong_type_fails(dtype: str) -> None:
    """Numbers that are no floating point are reported with their type, even if equal."""
    reference = np.array([[1.0, 0.0], [0.0, 1.0]])
    report = _compare(reference, reference.astype(dtype))
    assert report.verdict == "fail"
    assert report.reason == f"logits: type {dtype}, expected floating point"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail(value: float) -> None:
    """NaN and infinity fail with how many samples have them, and the first is named."""
    candidate = LOGITS.copy()
    candidate[1, 2] = candidate[3, 0] = value
    report = _compare(LOGITS, candidate, _given(1e30))
    assert report.verdict == "fail"
    assert report.reason == "logits: NaN or infinity on 2 of 4 samples, first image-1"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_decides_nothing(value: float) -> None:
    """NaN on both sides is no agreement, and it is the checkpoint's fault."""
    broken = LOGITS.copy()
    broken[0, 0] = value
    report = _compare(broken, broken.copy())
    assert (report.verdict, report.reason) == (
        "inconclusive",
        "logits: the reference itself answers NaN or infinity on 1 of 4 samples, first image-0: "
        "mend its weights",
    )


def test_nan_beside_a_broken_reference_fails() -> None:
    """NaN where the reference has numbers is the artifact's fault, whatever the reference does."""
    broken, candidate = LOGITS.copy(), LOGITS.copy()
    broken[0, 0] = candidate[0, 0] = candidate[2, 1] = np.nan
    report = _compare(broken, candidate)
    assert report.verdict == "fail"
    assert report.reason == "logits: NaN or infinity on 1 of 4 samples, first image-2"


@pytest.mark.parametrize("outputs", [{}, {"logits": np.zeros((0, 4))}], ids=["none", "no rows"])
def test_no_samples_fail(outputs: dict[str, np.ndarray]) -> None:
    """Without samples nothing was compared, which is no pass."""
    report = compare_outputs(
        outputs, outputs, _samples(0), _everywhere(1.0), expected=_signature("logits"), runtime=""
    )
    assert report.verdict == "fail"
    assert report.reason.startswith("no samples were compared")
    assert report.samples == 0


def test_no_outputs_fail() -> None:
    """A reference without outputs has nothing to hold a candidate against."""
    report = compare_outputs(
        {}, {"logits": LOGITS}, _samples(4), _everywhere(1.0), expected=_signature(), runtime=""
    )
    assert (report.verdict, report.reason) == ("fail", "the reference has no outputs")


def test_an_output_without_values_fails() -> None:
    """An output with no columns is empty on both sides, which is no agreement."""
    report = _compare(np.zeros((4, 0)), np.zeros((4, 0)))
    assert (report.verdict, report.reason) == ("fail", "logits: the output has no values")


def test_a_constant_reference_decides_nothing() -> None:
    """Where the reference answers every image alike, an exact candidate is inconclusive."""
    constant = np.tile(LOGITS[:1], (4, 1))
    report = _compare(constant, constant.copy(), _given(1e-3))
    assert report.verdict == "inconclusive"
    assert "They vary by 0.0e+00 and reach 4.0e+00" in report.reason
    assert "check trained weights" in report.reason
    assert _only(report).undecided_rows == tuple(f"image-{row}" for row in range(4))
    assert math.isnan(_only(report).max_rel)


def test_a_wrong_artifact_of_a_constant_reference_fails() -> None:
    """An error above the tolerance is a failure on a row that would otherwise decide nothing."""
    constant = np.tile(LOGITS[:1], (4, 1))
    wrong = constant.copy()
    wrong[1, 2] += 0.01
    report = _compare(constant, wrong, _given(1e-3))
    assert report.verdict == "fail"
    assert report.reason.startswith("logits: error 1.00e-02 on image-1 exceeds")


def test_one_sample_decides_nothing() -> None:
    """A single sample cannot show that the answer depends on the image."""
    assert _compare(LOGITS[:1], LOGITS[:1]).verdict == "inconclusive"


def test_rows_are_decided_one_by_one() -> None:
    """A row with a tolerance as large as its spread is counted, named, and sets no figure."""
    rows = (1e-3, 1e-3, 2.0, 1e-3)
    candidate = LOGITS * (1 + 2.0**-12)
    candidate[2] += 5  # within its own tolerance of twice its size
    report = _compare(LOGITS, candidate, Tolerance(0.0, rows, "derived"))
    assert report.verdict == "pass"
    assert report.reason.startswith("logits: only 3 of 4 samples can show a fault")
    assert report.reason.endswith("image-2")
    output = _only(report)
    assert output.undecided_rows == ("image-2",)
    assert output.max_rel == pytest.approx(2.0**-12)
    assert output.max_abs == pytest.approx(2.0**-12 * 8)


def test_a_failure_on_a_deciding_row_stays_one() -> None:
    """Rows that decide nothing excuse no other."""
    candidate = LOGITS.copy()
    candidate[0, 0] += 1
    report = _compare(LOGITS, candidate, Tolerance(0.0, (1e-3, 1e-3, 2.0, 1e-3), "derived"))
    assert report.verdict == "fail"
    assert [f.kind for f in report.findings if f.verdict == "fail"] == ["too-far"]


def _varying(by: float) -> np.ndarray:
    """Two answers, one at 1 and one at -1 of ``by`` about a common 1024."""
    return np.array([[1024.0, 1024.0 + by], [1024.0, 1024.0 - by]])


@pytest.mark.parametrize(
    ("by", "verdict"), [(0.5, "inconclusive"), (1.0, "inconclusive"), (2.0, "pass")]
)
def test_a_reference_that_hardly_varies_decides_nothing(by: float, verdict: str) -> None:
    """A reference must vary by more than 2**-10 of its size, whatever the tolerance."""
    assert VARIATION == 2.0**-10
    report = _compare(_varying(by), _varying(by), _given(1e-9))
    assert report.verdict == verdict


def test_a_tolerance_that_the_mean_answer_would_meet_decides_nothing() -> None:
    """Where the constant answer of the reference's mean would pass, an exact one does not."""
    reference = np.array([[1.0, 2.0], [2.0, 1.0]])  # each half a unit from their mean
    assert _compare(reference, reference, _given(0.2)).verdict == "pass"
    report = _compare(reference, reference, _given(0.25))
    assert report.verdict == "inconclusive"
    assert "They vary by 5.0e-01 and reach" in report.reason


def test_the_mean_answer_never_passes() -> None:
    """A network that answers with the mean of the reference passes under no tolerance."""
    mean = np.tile(LOGITS.mean(axis=0), (4, 1))
    verdicts = {_compare(LOGITS, mean, _given(2.0**k)).verdict for k in range(-20, 20)}
    assert verdicts == {"fail", "inconclusive"}


@pytest.mark.parametrize("rtol", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("all_rows", [True, False])
def test_a_tolerance_that_is_not_finite_decides_nothing(rtol: float, *, all_rows: bool) -> None:
    """A row with a NaN or infinite allowance decides nothing, whatever the candidate answers."""
    rows = (rtol,) if all_rows else (1e-3, rtol, 1e-3, 1e-3)
    for factor in (1, 0):
        candidate = LOGITS.copy()
        candidate[1] *= factor
        report = _compare(LOGITS, candidate, Tolerance(0.0, rows, "derived"))
        undecided = _only(report).undecided_rows
        assert (len(undecided), "image-1" in undecided) == (4 if all_rows else 1, True)
        assert report.verdict == ("inconclusive" if all_rows else "pass")


def test_a_known_doubt_makes_an_exact_candidate_inconclusive() -> None:
    """A reason to distrust the check itself is no failure of the artifact, and no pass."""
    report = _compare(LOGITS, LOGITS, doubt="3 of 4 branches contribute exactly zero")
    assert report.verdict == "inconclusive"
    assert report.reason == (
        "this check decides nothing: 3 of 4 branches contribute exactly zero; check trained "
        "weights"
    )


def test_a_doubt_hides_no_failure() -> None:
    """A wrong artifact of an untrained network fails; what failed is said first."""
    report = _compare(LOGITS, LOGITS * 1.5, doubt="3 of 4 branches contribute exactly zero")
    assert report.verdict == "fail"
    assert report.reason.startswith("logits: error ")


def test_an_error_above_the_tolerance_fails_and_names_the_sample() -> None:
    """The worst row is named, with its error and what would have been allowed."""
    candidate = LOGITS.copy()
    candidate[2, 3] += 0.5  # 0.5 of 16 is 3 %
    candidate[0, 1] += 2.0**-12
    report = _compare(LOGITS, candidate, _given(2.0**-10))
    assert report.verdict == "fail"
    assert report.reason == (
        "logits: error 5.00e-01 on image-2 exceeds the tolerance 1.56e-02"  # 16 * 2 ** -10
    )
    assert _only(report).worst_sample == "image-2"
    assert _only(report).worst_ratio == 32


def test_the_worst_row_is_worst_by_its_own_allowance() -> None:
    """A small error on a small row can be worse than a large one on a large row."""
    candidate = LOGITS.copy()
    candidate[2, 3] += 2.0**-7  # half of what 16 allows
    candidate[3, 1] += 2.0**-8  # four times what 1 allows
    output = _only(_compare(LOGITS, candidate, _given(2.0**-10)))
    assert (output.worst_sample, output.worst_ratio) == ("image-3", 4)
    assert output.max_abs == 2.0**-7


def test_an_absolute_tolerance_alone() -> None:
    """With ``rtol`` 0 the same distance is allowed on every row."""
    assert _compare(LOGITS, LOGITS + 2.0**-8, _given(0.0, atol=2.0**-8)).verdict == "pass"
    assert _compare(LOGITS, LOGITS + 2.0**-7, _given(0.0, atol=2.0**-8)).verdict == "fail"


def test_no_tolerance_at_all_demands_equality() -> None:
    """With both at 0 only the very same numbers pass, and any distance fails."""
    assert _compare(LOGITS, LOGITS.copy(), _given(0.0)).verdict == "pass"
    off = LOGITS.copy()
    off[3, 2] = np.nextafter(off[3, 2], 1)
    assert _compare(LOGITS, off, _given(0.0)).verdict == "fail"
    assert _compare(LOGITS, LOGITS + 10, _given(0.0)).verdict == "fail"


def test_a_reference_row_of_zeros_allows_nothing() -> None:
    """A relative tolerance of a row that is all zero allows no distance from it."""
    reference = np.vstack([LOGITS, np.zeros((1, 4))])
    candidate = reference.copy()
    candidate[4, 0] = 100.0
    report = _compare(reference, candidate, _given(0.1))
    assert report.verdict == "fail"
    assert _only(report).worst_sample == "image-4"


# --- flips ----------------------------------------------------------------------------------


def _flipped(row: int) -> np.ndarray:
    """``LOGITS`` with the two best classes of one row exchanged."""
    candidate = LOGITS.copy()
    best, second = np.argsort(-LOGITS[row])[:2]
    candidate[row, [best, second]] = LOGITS[row, [second, best]]
    return candidate


def test_a_decided_flip_fails_within_a_generous_tolerance() -> None:
    """A flip that the error on the other rows cannot explain fails, though the distance passes."""
    report = _compare(LOGITS, _flipped(3), _given(0.25, atol=0.0))
    assert (report.verdict, report.reason) == (
        "fail",
        "logits: 1 top-1 flips that rounding does not excuse",
    )
    output = _only(report)
    assert output.worst_ratio <= 1
    assert (output.decided_flips, output.undecided_flips) == (1, 0)
    assert output.top1_agreement == 0.75
    assert output.top5_agreement == 1


def test_an_undecided_flip_passes() -> None:
    """A near-tie that flips by as much as other rows are off passes, and is counted."""
    candidate = _flipped(3)  # a margin of 1/4
    candidate[1, 0] += 0.125  # an error of half the margin elsewhere, which explains it
    report = _compare(LOGITS, candidate, _given(0.25))
    assert report.verdict == "pass"
    output = _only(report)
    assert (output.decided_flips, output.undecided_flips) == (0, 1)


@pytest.mark.parametrize(("part", "decided"), [(0.99, 1), (1.01, 0)])
def test_a_flip_is_decided_by_what_other_rows_use(part: float, decided: int) -> None:
    """Half the margin has to exceed the row's allowance times what rounding may use of it."""
    share = 0.125 / (0.25 * excess(3, 4))  # of row 3, whose margin is 1/4 and allowance 1/4
    candidate = _flipped(3)
    candidate[0, 2] += part * share * 0.25 * 4  # image-0 reaches 4
    output = _only(_compare(LOGITS, candidate, _given(0.25)))
    assert (output.decided_flips, output.undecided_flips) == (decided, 1 - decided)


def test_a_flip_on_a_row_near_chaos_is_no_failure() -> None:
    """A row that uses as little of its own large allowance as others of theirs may flip."""
    rtol = (1e-3, 1e-3, 1e-3, 0.5)
    candidate = _flipped(3)
    candidate[:3] += 0.3 * 1e-3  # a share like that of the row that flips, a far smaller error
    report = _compare(LOGITS, candidate, Tolerance(0.0, rtol, "derived"))
    assert report.verdict == "pass"
    assert (_only(report).decided_flips, _only(report).undecided_flips) == (0, 1)


def test_a_flip_on_a_quiet_row_is_not_excused_by_a_loud_one() -> None:
    """The large error of a row near chaos, small in its own units, excuses no other row."""
    rtol = (0.5, 0.26, 0.26, 0.26)
    candidate = _flipped(3)
    candidate[0, 2] += 0.01 * 0.5 * 4
    report = _compare(LOGITS, candidate, Tolerance(0.0, rtol, "derived"))
    assert _only(report).decided_flips == 1


@pytest.mark.parametrize("rows", [2, 25, 400])
def test_excess_is_seldom_exceeded(rows: int) -> None:
    """Normal errors of one row stay below the bound that the others give, draw after draw."""
    errors = np.abs(np.random.default_rng(0).standard_normal((2000, rows + 1, 10))).max(axis=2)
    ratio = errors[:, 0] / errors[:, 1:].max(axis=1)
    assert ratio.max() < excess(rows, 10)
    assert excess(rows, 10) < excess(max(1, rows // 2), 10)


def test_classes_of_equal_logits_are_no_flip() -> None:
    """Among equal logits both sides take the first, so that an exact copy has no flip."""
    tied = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    output = _only(_compare(tied, tied.copy()))
    assert (output.top1_agreement, output.decided_flips, output.undecided_flips) == (1, 0, 0)


# --- properties -----------------------------------------------------------------------------

VALUES = st.floats(-100, 100, allow_nan=False, width=32)
REFERENCES = arrays.arrays(
    np.float64,
    st.tuples(st.integers(2, 6), st.integers(2, 8)),
    elements=VALUES,
).filter(
    lambda r: (
        np.abs(r - r.mean(axis=0)).max() > 0.01 * np.abs(r).max()
        and np.abs(r).max(axis=1).min() > 1
    )
)
"""Answers that vary over the samples and have no row of nothing."""


@given(reference=REFERENCES)
def test_an_exact_candidate_always_passes(reference: np.ndarray) -> None:
    """Whatever the reference answers, if it varies, its copy passes without any tolerance."""
    report = _compare(reference, reference.copy(), _given(0.0))
    assert (report.verdict, report.reason) == ("pass", "")


@given(reference=REFERENCES, data=st.data())
def test_noise_within_the_allowance_never_exceeds_it(
    reference: np.ndarray, data: st.DataObject
) -> None:
    """Noise of up to seven eighths of what a row is allowed never exceeds the tolerance."""
    tolerance = _given(1e-3)
    share = data.draw(
        arrays.arrays(np.float64, reference.shape, elements=st.floats(-0.875, 0.875, width=32))
    )
    noisy = reference + share * tolerance.allowed(reference)[:, None]
    output = _only(_compare(reference, noisy, tolerance))
    assert output.worst_ratio <= 1
    # What may fail is a near-tie that flipped, and it is near indeed.
    margins = np.sort(reference, axis=1)[:, -1] - np.sort(reference, axis=1)[:, -2]
    near = margins <= 2 * tolerance.allowed(reference)
    assert output.decided_flips + output.undecided_flips <= near.sum()


@given(reference=REFERENCES, data=st.data())
def test_one_value_beyond_the_allowance_fails_and_is_named(
    reference: np.ndarray, data: st.DataObject
) -> None:
    """One number of one row, off by more than allowed, fails with the row's name."""
    row = data.draw(st.integers(0, len(reference) - 1))
    column = data.draw(st.integers(0, reference.shape[1] - 1))
    factor = data.draw(st.floats(1.01, 100)) * data.draw(st.sampled_from([-1, 1]))
    tolerance = _given(1e-3)
    candidate = reference.copy()
    candidate[row, column] += factor * tolerance.allowed(reference)[row]
    report = _compare(reference, candidate, tolerance)
    assert report.verdict == "fail"
    assert f"on image-{row} exceeds the tolerance" in report.reason


@given(reference=REFERENCES, data=st.data())
def test_the_figures_are_those_of_their_formulas(
    reference: np.ndarray, data: st.DataObject
) -> None:
    """Every distance and agreement equals one computed here number by number."""
    candidate = data.draw(arrays.arrays(np.float64, reference.shape, elements=VALUES))
    output = _only(_compare(reference, candidate))
    r, c = reference.tolist(), candidate.tolist()
    errors = [[abs(a - b) for a, b in zip(x, y, strict=True)] for x, y in zip(r, c, strict=True)]
    rows = [max(row) for row in errors]
    relative = [e / max(map(abs, x)) for e, x in zip(rows, r, strict=True)]
    terms = sum(map(len, r))
    # Sums of up to 48 terms, each a few roundings.
    close = {"rel": 4 * terms * UNIT, "abs": 4 * terms * UNIT}
    assert output.max_abs == max(rows)
    assert output.max_rel == max(relative)
    assert output.mean_abs == pytest.approx(math.fsum(map(math.fsum, errors)) / terms, **close)
    assert output.worst_ratio == pytest.approx(max(relative) / 1e-3, **close)
    cosines = [
        math.fsum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
        for x, y in zip(r, c, strict=True)
        if any(y)
    ]
    zeros = [0.0] * (len(c) - len(cosines))
    assert output.cosine == pytest.approx(min(cosines + zeros), **close)
    noise = math.fsum(e * e for row in errors for e in row)
    signal = math.fsum(a * a for row in r for a in row)
    if noise:
        decibels = 10 * math.log10(signal / noise)
        assert output.snr_db == pytest.approx(decibels, rel=close["rel"], abs=10 * close["abs"])
    else:
        assert output.snr_db == math.inf
    assert output.top1_agreement == _agreement(r, c, 1)
    assert output.top5_agreement == _agreement(r, c, 5)


def _agreement(r: list[list[float]], c: list[list[float]], k: int) -> float:
    def best(row: list[float]) -> set[int]:
        return set(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k])

    return sum(best(x) == best(y) for x, y in zip(r, c, strict=True)) / len(r)


@given(reference=REFERENCES, factor=st.sampled_from([2.0**-20, 2.0**-3, 2.0, 2.0**30]))
def test_the_verdict_does_not_depend_on_the_scale(reference: np.ndarray, factor: float) -> None:
    """Both sides multiplied by a power of two give the same relative figures."""
    candidate = reference * (1 + 2.0**-12)
    one = _only(_compare(reference, candidate))
    other = _only(_compare(reference * factor, candidate * factor))
    assert (one.max_rel, one.worst_ratio) == (other.max_rel, other.worst_ratio)
    assert one.decided_flips == other.decided_flips


# --- sessions -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 9])
def test_a_fixed_batch_is_filled_up_and_the_filling_dropped(batch: int) -> None:
    """A session with a fixed batch gets full ones only; what it answers for padding is dropped."""
    session = FakeSession(_answer, batch=batch)
    samples = _samples(7)
    outputs = collect(session, samples)
    assert {len(inputs) for inputs in session.given} == {batch}
    assert len(session.given) == math.ceil(7 / batch)
    assert np.array_equal(outputs["logits"], _answer(samples.inputs)["logits"])


def test_padding_repeats_the_last_sample() -> None:
    """What fills a batch up is an image of the set, never zeros."""
    session = FakeSession(_answer, batch=4)
    samples = _samples(5)
    collect(session, samples)
    assert np.array_equal(session.given[1], np.repeat(samples.inputs[4:], 4, axis=0))


def test_an_open_batch_is_tried_in_mixed_sizes() -> None:
    """A session that claims any batch is given batches of 1, 2 and 3 in turn."""
    session = FakeSession(_answer)
    samples = _samples(8)
    outputs = collect(session, samples)
    assert [len(inputs) for inputs in session.given] == [1, 2, 3, 1, 1]
    assert np.array_equal(outputs["logits"], _answer(samples.inputs)["logits"])


def test_an_open_batch_of_a_given_size_is_filled_up() -> None:
    """Where a size is asked for, an open session is given batches of that size."""
    session = FakeSession(_answer)
    outputs = collect(session, _samples(5), batch=2)
    assert [len(inputs) for inputs in session.given] == [2, 2, 2]
    assert len(outputs["logits"]) == 5


def test_a_fixed_batch_wins_over_the_size_asked_for() -> None:
    """A session that takes threes is given threes."""
    session = FakeSession(_answer, batch=3)
    collect(session, _samples(5), batch=2)
    assert [len(inputs) for inputs in session.given] == [3, 3]


def test_no_samples_run_nothing() -> None:
    """Without samples the session is not called and nothing is collected."""
    session = FakeSession(_answer)
    assert collect(session, _samples(0)) == {}
    assert session.given == []


def test_two_sessions_that_agree_pass() -> None:
    """``compare`` runs both and passes a candidate with a fixed batch against an open one."""
    report = compare(FakeSession(_answer), FakeSession(_answer, 3), _samples(7), _everywhere(0.0))
    assert (report.verdict, report.samples) == ("pass", 7)


def test_an_export_that_only_pretends_to_be_dynamic_fails() -> None:
    """A candidate whose answers for later images of a batch are those of the first fails."""

    def first_of_each_batch(images: np.ndarray) -> dict[str, np.ndarray]:
        return _answer(np.repeat(images[:1], len(images), axis=0))

    report = compare(
        FakeSession(_answer), FakeSession(first_of_each_batch), _samples(7), _everywhere(1e-3)
    )
    assert report.verdict == "fail"


@pytest.mark.parametrize(
    ("form", "shape", "batch"),
    [
        (lambda logits: logits.sum(), "()", 1),
        (lambda logits: logits.reshape(-1), "(4,)", 1),
        (lambda logits: logits[None], "(1, 2, 4)", 2),
        (lambda logits: logits[:1], "(1, 4)", 2),
        (lambda logits: np.vstack([logits, logits[:1]]), "(2, 4)", 1),
        (lambda logits: logits[:, : 4 - len(logits) // 2], "(2, 3)", 2),
    ],
    ids=["scalar", "flat", "rank 3", "one row", "one row too many", "width by batch"],
)
def test_answers_that_are_not_a_row_for_each_image_fail(
    form: Callable[[np.ndarray], np.ndarray], shape: str, batch: int
) -> None:
    """Anything but one row for each image, all alike, fails with the shape and the batch."""
    report = compare(
        FakeSession(_answer),
        FakeSession(lambda images: {"logits": form(_answer(images)["logits"])}),
        _samples(7),
        _everywhere(1e-3),
    )
    assert (report.verdict, report.samples, report.runtime) == ("fail", 7, "fake 1.0")
    assert report.reason.startswith(f"output 'logits' has shape {shape} for a batch of {batch}.")


def test_a_candidate_whose_runtime_fails_fails() -> None:
    """What a runtime says when it gives up is the reason of the verdict."""

    def broken(_: np.ndarray) -> dict[str, np.ndarray]:
        raise RuntimeFailedError("fake 1.0 failed on a.onnx", remedy="Check the input.")

    report = compare(FakeSession(_answer), FakeSession(broken), _samples(7), _everywhere(1e-3))
    assert (report.verdict, report.reason) == (
        "fail",
        "fake 1.0 failed on a.onnx. Check the input.",
    )


def test_a_check_that_did_not_run_is_neither() -> None:
    """``not_run`` keeps the reason and claims no samples."""
    report = not_run("openvino not installed")
    assert (report.verdict, report.reason) == ("not-run", "openvino not installed")
    assert (report.samples, report.outputs) == (0, ())
