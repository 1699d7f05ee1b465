"""What a person sees on a terminal while a build runs: a bar for each running step."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

REFRESH_PER_SECOND = 2  # drawing must not disturb a measurement


class LiveWatcher:
    """A bar for each running step; finished ones stay as lines above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=20),
            TextColumn("{task.fields[what]}", markup=False), TimeElapsedColumn(), console=console, transient=True,
            refresh_per_second=REFRESH_PER_SECOND,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._all = self._progress.add_task("build", total=0, what="")
        self._total = self._done = 0

    def __enter__(self) -> LiveWatcher:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, count: int) -> None:
        """More steps are needed."""
        self._total += count
        self._show_all()

    def started(self, step: str, why: str) -> None:
        """A step begins."""
        self._tasks[step] = self._progress.add_task(step, total=None, what=why)

    def progressed(self, step: str, done: int, total: int, what: str) -> None:
        """A running step has got further."""
        if step in self._tasks:
            self._progress.update(self._tasks[step], completed=done, total=total, what=what)

    def ended(self, step: str, status: str, seconds: float) -> None:
        """A step has ended. Reused ones are counted and not listed."""
        self._done += 1
        self._show_all()
        if status == "reused":
            return
        task = self._tasks.pop(step, None)
        if task is not None:
            self._progress.remove_task(task)
        line = Text("done", "green") if status == "executed" else Text(status, "red")
        self._progress.console.print(line + Text(f" {step} ") + Text(f"{seconds:.1f} s", "dim"))

    def _show_all(self) -> None:
        what = f"{self._done} of {self._total} steps"
        self._progress.update(self._all, completed=self._done, total=self._total, what=what)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._progress.console.print(text, highlight=False, markup=False)
