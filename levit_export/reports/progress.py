"""How far a run is, on standard error: a bar on a terminal, a line for each stage in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text


class _Counted:
    """The stages of a run, numbered, with the seconds since it began."""

    def __init__(self) -> None:
        self._start = perf_counter()
        self._number = self._total = 0

    @property
    def elapsed(self) -> str:
        """The time of the whole run so far, in seconds."""
        return f"{perf_counter() - self._start:.1f} s"

    def plan(self, total: int) -> None:
        """So many stages are expected."""
        self._total = total

    def named(self, text: str) -> str:
        """``stage 4/9: text`` of the stage that begins; without a total where none is known."""
        self._number += 1
        # What was not foreseen, such as a download, is a stage as well.
        self._total = self._total and max(self._total, self._number)
        of = f"/{self._total}" if self._total else ""
        return f"stage {self._number}{of}: {text}"


class Lines(_Counted):
    """For a log: a line when a stage begins, with the time until then."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def stage(self, text: str) -> None:
        """A new stage has begun."""
        line = f"{self.named(text)} ({self.elapsed})"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def steps(self, total: int) -> None:
        """Nothing: steps would fill a log."""

    def advance(self) -> None:
        """Nothing: steps would fill a log."""


class _Total(ProgressColumn):
    """The time of the whole run; rich's own column starts anew with each stage."""

    def __init__(self, counted: _Counted) -> None:
        super().__init__()
        self._counted = counted

    def render(self, task: Task) -> Text:
        """The seconds, for any task."""
        del task
        return Text(self._counted.elapsed)


class _Bars(_Counted):
    """For a terminal: one bar that is renamed stage by stage."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        # Converters' output is kept away by redirecting; the bar must not go with it.
        self.shown = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Total(self),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self.shown.add_task("starting", total=None)

    def stage(self, text: str) -> None:
        """A new stage has begun."""
        self.shown.reset(self._task, total=None, description=self.named(text))

    def steps(self, total: int) -> None:
        """The stage takes ``total`` steps."""
        self.shown.update(self._task, total=total)

    def advance(self) -> None:
        """One step is done."""
        self.shown.advance(self._task)


@contextmanager
def bars(console: Console) -> Iterator[_Bars]:
    """A bar on the terminal of ``console`` while the context lasts."""
    found = _Bars(console)
    with found.shown:
        yield found
