"""`Scenario`, what it promises; `Report`, what happened; `perform`, which compares the two.

What is promised stands in the scenario; what happened comes from the scenario's play, which
returns what it saw on the way, and from `Stage.measure`, which looks at the catcher and into both
databases when all is over and knows nothing of promises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...exceptions import TxmailError
from .dialogue import Turn, dialogue_of

if TYPE_CHECKING:
    from .stage import Stage, Values

#: Of the text of an error that no scenario expects, this many characters are shown.
_ERROR_LIMIT = 160


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something that happens to an application, and what txmail promises about it."""

    title: str
    #: a sentence or two for who sees it for the first time
    story: str
    #: what will be measured, in the order in which it is shown
    promises: Values
    #: does it; returns what has to be measured on the way
    play: Callable[[Stage], Values]


@dataclass(frozen=True, slots=True)
class Row:
    """One promise and what was measured."""

    what: str
    promised: str
    happened: str

    @property
    def kept(self) -> bool:
        """True if what happened is what was promised."""
        return self.promised == self.happened

    @property
    def verdict(self) -> str:
        """``ok`` or ``BROKEN``."""
        return "ok" if self.kept else "BROKEN"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the promises of one scenario."""

    scenario: Scenario
    rows: tuple[Row, ...]
    seconds: float
    #: what was said on the first connection to the catcher
    dialogue: tuple[Turn, ...] = ()

    @property
    def kept(self) -> bool:
        """True if every promise was kept."""
        return all(row.kept for row in self.rows)


class Renderer(Protocol):
    """Shows a run. Entered as a context from before `opening` until all scenarios have ended."""

    def __enter__(self) -> object: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def opening(self, scenarios: int) -> None:
        """Say what will be shown; `scenarios` is their number."""

    def begins(self, number: int, scenario: Scenario) -> None:
        """The scenario with this number begins."""

    def ended(self, number: int, report: Report) -> None:
        """It has ended."""

    def closing(self, reports: Sequence[Report], seconds: float) -> None:
        """Show a dialogue and the verdict; `seconds` is how long it took."""


def perform(scenario: Scenario, stage: Stage) -> Report:
    """Play `scenario` on `stage` and compare. An error that it did not expect breaks a promise."""
    started = time.perf_counter()
    seen: dict[str, object] = {}
    troubles: list[Exception] = []
    looks: tuple[Callable[[], Values], ...] = (lambda: scenario.play(stage), stage.measure)
    for look in looks:
        try:
            seen.update(look())
        except Exception as error:
            troubles.append(error)
    rows = [
        Row(what, str(promised), str(seen.get(what, "not measured")))
        for what, promised in scenario.promises.items()
    ]
    rows += [Row("errors nobody expected", "none", _shown(error)) for error in troubles]
    seconds = time.perf_counter() - started
    connections = stage.catcher.connections
    return Report(
        scenario, tuple(rows), seconds, dialogue_of(connections[0]) if connections else ()
    )


def _shown(error: Exception) -> str:
    text = str(error) if isinstance(error, TxmailError) else ascii(str(error))[1:-1]
    return f"{type(error).__name__}: {text}"[:_ERROR_LIMIT]
