"""A `Scenario` has promises, a `Report` says what happened, and `perform` compares the two.

The promises stand in the scenario. What happened comes from two sources: `Scenario.play` returns
what it sees on the way, and `Setup.measure` looks at the catcher and into both databases at the
end. `Setup.measure` does not know the promises.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...exceptions import TxmailError
from .dialogue import Turn, dialogue_of

if TYPE_CHECKING:
    from .setup import Setup, Values

#: Of the text of an error that no scenario expects, this many characters are shown.
_ERROR_LIMIT = 160


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something that happens to an application, and what txmail promises about it."""

    title: str
    #: a sentence or two for somebody who sees it for the first time
    story: str
    #: what will be measured, in the order in which it is shown
    promises: Values
    #: runs it; returns what it measures on the way
    play: Callable[[Setup], Values]


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


def perform(scenario: Scenario, setup: Setup) -> Report:
    """Run `scenario` on `setup` and compare. An error that it does not expect breaks a promise."""
    started = time.perf_counter()
    seen: dict[str, object] = {}
    troubles: list[Exception] = []
    looks: tuple[Callable[[], Values], ...] = (lambda: scenario.play(setup), setup.measure)
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
    connections = setup.catcher.connections
    return Report(
        scenario, tuple(rows), seconds, dialogue_of(connections[0]) if connections else ()
    )


def _shown(error: Exception) -> str:
    text = str(error) if isinstance(error, TxmailError) else ascii(str(error))[1:-1]
    return f"{type(error).__name__}: {text}"[:_ERROR_LIMIT]
