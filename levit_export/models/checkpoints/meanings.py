"""What the outputs of a model mean: as a folder says it, as a user says it, or assumed.

transformers keeps it as ``problem_type``, which decides the loss that the head was trained with:
cross entropy over the classes, binary cross entropy for each label, or a squared error. No tensor
shows it, and the probabilities of one are wrong for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from levit_export.core.errors import CheckpointError
from levit_export.core.values import Task
from levit_export.models.zoo import Config

PROBLEMS: dict[str, Task] = {
    "single_label_classification": "single-label",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}
"""Values of ``problem_type``."""
MEANT: dict[Task, str] = {
    "single-label": "one class of all",
    "multi-label": "each label by itself (a sigmoid makes probabilities of them)",
    "regression": "numbers, not classes",
}


@dataclass(frozen=True)
class Meaning:
    """The task, and what was found and assumed on the way, a sentence each."""

    task: Task
    remarks: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def settled(
    config: Config, given: Task | None, said: Mapping[str, Any] | None, source: str
) -> Meaning:
    """``given`` by the user, else ``problem_type``; without either one class of several.

    A single output of which nothing is said stays ``unsaid``: it may be a class or a number.
    Raises ``CheckpointError`` for a ``problem_type`` that transformers does not have.
    """
    problem = (said or {}).get("problem_type")
    if problem is not None and problem not in PROBLEMS and given is None:
        raise CheckpointError(
            f"the config.json of {source} has the problem_type {problem!r}",
            remedy=f"Known: {', '.join(PROBLEMS)}; --task says it in its place.",
        )
    task = given or PROBLEMS.get(problem or "")
    if task is None:
        if config.classes == 1:
            words = "nothing says whether the one output is a class or a number"
            return Meaning("unsaid", (f"{words}; --task says it",))
        words = "nothing says what the outputs mean: one class of all is assumed"
        return Meaning("single-label", assumptions=(f"{words}; --task says another",))
    if task == "single-label":
        return Meaning(task)
    whose = "--task" if given else "its config.json"
    return Meaning(task, (f"the outputs mean {MEANT[task]}, as {whose} says",))
