"""Shows a run with Rich: colours and progress on a terminal, plain ASCII elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from .dialogue import Turn
from .scenario import Report, Row, Scenario
from .wording import (
    CODE,
    DIALOGUE_TITLE,
    HEADINGS,
    INTRODUCTION,
    NEXT,
    TITLE,
    VALUES,
    VERDICT,
    annotated,
    broken_rows,
    sentence,
    verdict,
)

#: Columns of a page that is still easy to read; a wider terminal is not filled.
_WIDEST = 100
#: Columns below which nothing gets narrower.
_NARROWEST = 30
#: Columns below which a scenario has a list of sentences instead of a table.
_TABLE = 77
#: Columns of the count of scenarios.
_COUNT = len("10/10")
_KEPT, _BROKEN, _ASIDE = "green", "bold white on red", "dim"


class Display:
    """Shows each scenario when it has ended, on a page that is as wide as the terminal.

    A context, entered before `opening` and left when all scenarios have ended: progress is shown
    within it. All text goes through `Text`: Rich reads nothing in it as markup.
    """

    def __init__(self, stream: TextIO, *, plain: bool) -> None:
        """Write to `stream`; `plain` leaves out colours, progress and control characters."""
        self._stream, self._plain = stream, plain
        columns = shutil.get_terminal_size((80, 24)).columns - 1
        self._width = max(_NARROWEST, min(columns, _WIDEST))
        self._console = (
            Console(file=stream, force_terminal=False, color_system=None, width=self._width)
            if plain
            else Console(file=stream)
        )
        self._progress = Progress(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=3),
            ),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=_COUNT)),
            console=self._console,
            transient=True,
            disable=plain,
        )
        self._task = self._progress.add_task("opening the databases", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def opening(self, scenarios: int) -> None:
        """Say what will be shown; `scenarios` is their number."""
        self._progress.update(self._task, total=scenarios)
        code = Padding(Text("\n".join(CODE), "cyan"), (1, 0, 0, 4))
        self._show(Group(Text(TITLE, "bold"), _line("="), Text(INTRODUCTION), code))

    def begins(self, number: int, scenario: Scenario) -> None:
        """Show that the scenario with this number runs."""
        self._progress.update(self._task, description=scenario.title)

    def ended(self, number: int, report: Report) -> None:
        """Show what the scenario with this number promised, and what happened."""
        self._progress.advance(self._task)
        story = Text(report.scenario.story, _ASIDE)
        rows = _table(report) if self._width >= _TABLE else _list(report)
        below = Padding(Group(story, "", rows), (0, 0, 0, 2))
        self._show(Group("", _heading(number, report), _line("-"), below))

    def closing(self, reports: Sequence[Report], seconds: float) -> None:
        """Show a dialogue and the verdict; `seconds` is how long all of it took."""
        if reports and reports[0].dialogue:
            self._show(Group("", Text(DIALOGUE_TITLE, "bold"), _line("-")))
            self._show(Group(*map(_said, annotated(reports[0]))))
        kept = all(report.kept for report in reports)
        self._show(Group("", _line("=", _KEPT if kept else "red")))
        self._show(Text(verdict(reports, seconds), f"bold {_KEPT}" if kept else _BROKEN))
        for line in broken_rows(reports):
            self._show(Padding(Text(line), (0, 0, 0, 2)))
        self._show(Text(NEXT))

    def _show(self, part: RenderableType) -> None:
        if not self._plain:
            self._console.print(part, width=self._width)
            return
        with self._console.capture() as page:
            self._console.print(part)
        lines = page.get().split("\n")
        self._stream.write("\n".join(line.rstrip(" ") for line in lines))
        self._stream.flush()


def _line(character: str, style: str = _ASIDE) -> Rule:
    return Rule(characters=character, style=style)


def _heading(number: int, report: Report) -> Table:
    heading = Table.grid(expand=True)
    heading.add_column()
    heading.add_column(justify="right", width=len("0.00 s  BROKEN"))
    seconds = Text(f"{report.seconds:.2f} s  ", _ASIDE)
    title = Text(f"{number}. {report.scenario.title}", "bold")
    heading.add_row(title, seconds + _mark(report.kept))
    return heading


def _table(report: Report) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style=_ASIDE, padding=(0, 1))
    what, promised, happened, verdict_ = HEADINGS
    table.add_column(what, ratio=1, overflow="fold")
    table.add_column(promised, width=VALUES, overflow="fold")
    table.add_column(happened, width=VALUES, overflow="fold")
    table.add_column(verdict_, width=VERDICT, justify="right")
    for row in report.rows:
        cells = (Text(cell, _style(row)) for cell in (row.what, row.promised, row.happened))
        table.add_row(*cells, _mark(row.kept))
    return table


def _list(report: Report) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for row in report.rows:
        table.add_row(_mark(row.kept), Text(sentence(row), _style(row)))
    return table


def _style(row: Row) -> str:
    return "" if row.kept else "bold red"


def _mark(kept: bool) -> Text:
    return Text("ok", _KEPT) if kept else Text("BROKEN", _BROKEN)


def _said(turn: Turn) -> RenderableType:
    if not turn.who:
        return Padding(Text(turn.lines[0], "yellow"), (0, 0, 0, 2))
    grid = Table.grid(padding=(0, 1, 0, 0))
    for index, line in enumerate(turn.lines):
        who = turn.who if index == 0 else ""
        style = "cyan" if turn.who == "C" else ""
        grid.add_row(Text(who, _ASIDE), Text(line, style, overflow="fold"))
    return Padding(grid, (0, 0, 0, 4))
