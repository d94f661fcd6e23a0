"""From answers to counts and a verdict, and both into the report of an export directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.checks.results import Accuracy
from levit_export.core import files, serialisation
from levit_export.core.errors import RuntimeFailedError
from levit_export.core.statistics import mcnemar
from levit_export.core.values import Verdict
from levit_export.inputs.images import ImageSet
from levit_export.inputs.images.image_set import SHOWN
from levit_export.reports.report import SCHEMA, accuracy_to_json
from levit_export.storage.export_directory import REPORT
from levit_export.workflows.evaluate.predict import BEST, NOT_A_NUMBER, Answers, Ranking


def judge(
    answers: Answers,
    index: int,
    images: ImageSet,
    *,
    classes: int,
    expected: Ranking | None,
    max_drop: float | None,
    remarks: Sequence[str] = (),
) -> Accuracy:
    """The accuracy of the ``index``-th artifact; ``expected`` is what the reference answered.

    Top-1 is right where the best class is the label, top-5 where one of the five best is.
    """
    best = answers.answers[index].best
    labels = np.array([images.entries[row].label for row in answers.rows])
    right = best[:, 0] == labels if images.labelled else None
    unreadable = [str(each) for _, each in answers.unreadable]
    counts: dict[str, Any] = {}
    if right is not None and classes > BEST:
        counts["top5_correct"] = int((best == labels[:, None]).any(axis=1).sum())
    if expected is not None:
        counts |= _against(best[:, 0], expected.best[:, 0], labels if images.labelled else None)
    return Accuracy(
        dataset=images.source,
        images=len(best),
        correct=None if right is None else int(right.sum()),
        reference_correct=counts.pop("reference_correct", None),
        agreement=counts.pop("agreement", None),
        **counts,
        max_drop=max_drop,
        skipped=len(unreadable),
        skipped_names=tuple(unreadable[:SHOWN]),
        fingerprint=images.fingerprint,
        runtime=answers.answers[index].runtime,
        remarks=(*images.remarks, *remarks),
    )


def _against(
    found: np.ndarray, expected: np.ndarray, labels: np.ndarray | None
) -> dict[str, float | int]:
    """How the top-1 ``found`` differ from ``expected``.

    The drop is computed of whole numbers and rounded once, so that one which is exactly as large
    as was allowed does not exceed it.
    """
    flips = int((found != expected).sum())
    counts: dict[str, float | int] = {
        "agreement": (len(found) - flips) / len(found),
        "flips": flips,
    }
    if labels is None:
        return counts | {"drop": 100 * flips / len(found)}
    right, before = found == labels, expected == labels
    lost, gained = int((before & ~right).sum()), int((right & ~before).sum())
    return counts | {
        "reference_correct": int(before.sum()),
        "lost": lost,
        "gained": gained,
        "mcnemar_p": mcnemar(lost, gained),
        "drop": 100 * (lost - gained) / len(found),
    }


def verdict(answer: Ranking, accuracy: Accuracy) -> tuple[Verdict, str]:
    """The verdict on one artifact and its reason, empty for a pass."""
    if broken := int((answer.best[:, 0] == NOT_A_NUMBER).sum()):
        return "fail", f"NaN or infinity on {broken} of {len(answer.best)} images"
    if accuracy.exceeded:
        return "fail", f"drop of {accuracy.drop:.2f} points exceeds {accuracy.max_drop:g}"
    return "pass", ""


def refuse_broken(expected: Ranking | None) -> None:
    """Raise when the reference itself cannot be compared with."""
    if expected is None:
        return
    if expected.failure:
        raise RuntimeFailedError(expected.failure, remedy="Check the checkpoint.")
    if (expected.best == NOT_A_NUMBER).any():
        raise RuntimeFailedError(
            "PyTorch gives NaN or infinity on these images", remedy="Check the checkpoint."
        )


def record(folder: Path, found: Mapping[str, Sequence[Accuracy | None]]) -> str:
    """Update the artifacts of ``folder``'s report by their paths; returns why not, or empty.

    The i-th result of a path goes to the i-th entry with that path, for an artifact that was
    executed in several ways has several. The file is replaced in one step.
    """
    path = folder / REPORT
    try:
        content = serialisation.parse(files.read_text(path), SCHEMA)
        left = {path: list(results) for path, results in found.items()}
        for artifact in content["artifacts"]:
            results = left.get(artifact["path"])
            accuracy = results.pop(0) if results else None
            if accuracy is not None:
                artifact["accuracy"] = accuracy_to_json(accuracy)
        files.write(path, serialisation.to_text(content))
    except OSError as error:
        return f"{REPORT} was not updated: {error.strerror or error}"
    except serialisation.OtherSchemaError as error:
        return f"{REPORT} was not updated: it {error}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{REPORT} was not updated: it is none of ours ({type(error).__name__}: {error})"
    return ""
