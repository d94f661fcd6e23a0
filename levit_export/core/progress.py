"""How a run says how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Where a run reports to."""

    def plan(self, total: int) -> None:
        """The run is expected to have ``total`` stages."""

    def stage(self, text: str) -> None:
        """A new stage has begun."""

    def steps(self, total: int) -> None:
        """The stage takes ``total`` steps."""

    def advance(self) -> None:
        """One step is done."""


class Silent:
    """A :class:`Progress` that nobody listens to."""

    def plan(self, total: int) -> None:
        """Say nothing."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def steps(self, total: int) -> None:
        """Say nothing."""

    def advance(self) -> None:
        """Say nothing."""
