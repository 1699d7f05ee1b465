"""What a build finds out, and who is told while it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from compiler.errors import CompilerError
from compiler.stage import read_facts

if TYPE_CHECKING:
    from compiler.store import Result


class Watcher(Protocol):
    """Who is told what the build does."""

    def planned(self, count: int) -> None:
        """So many more steps are needed; each will be reported as ended."""

    def started(self, step: str, why: str) -> None:
        """A step begins to run."""

    def progressed(self, step: str, done: int, total: int, what: str) -> None:
        """A running step has got further."""

    def ended(self, step: str, status: str, seconds: float) -> None:
        """A step has ended."""

    def note(self, text: str) -> None:
        """Something else to say."""


@dataclass(frozen=True)
class StepRecord:
    """What became of a step. `seconds` is how long its execution took, in an earlier build if it was reused."""

    name: str
    stage: str
    key: str
    status: str
    seconds: float
    outputs: tuple[str, ...]
    why: str


@dataclass
class Outcome:
    """All that a build found out."""

    records: dict[str, StepRecord] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, CompilerError] = field(default_factory=dict)
    """Failed step -> its error, for steps that only some candidates need."""
    trained: bool = True
    claim: str = ""
    demo: bool = False
    weight_notes: list[str] = field(default_factory=list)
    """What was done to load the weights: a prefix removed, one of several sets taken."""
    prepared: frozenset[str] = frozenset()
    """Steps whose results another host made, of a build that is finished here."""
    finished_from: dict[str, str] = field(default_factory=dict)
    """`version` and `digest` of what another host prepared."""
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Candidates that are not measured: status and reason."""
    decision: dict[str, Any] = field(default_factory=dict)

    def facts(self, step: str) -> dict[str, Any]:
        """The facts of a finished step."""
        return read_facts(self.results[step].path)

    @property
    def executed(self) -> int:
        """How many steps ran."""
        return sum(record.status == "executed" for record in self.records.values())
