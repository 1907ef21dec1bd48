"""Shows a run on a terminal, with Rich: colours, and progress while it works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from .dialogue import Turn
from .scenario import Report, Scenario
from .wording import (
    CODE,
    DIALOGUE_TITLE,
    HEADINGS,
    INTRODUCTION,
    NEXT,
    TABLE,
    TITLE,
    VALUES,
    VERDICT,
    WIDEST,
    annotated,
    broken_rows,
    sentence,
    verdict,
)

#: Columns of the count of scenarios.
_COUNT = len("10/10")
_KEPT, _BROKEN, _ASIDE = "green", "bold white on red", "dim"


class Terminal:
    """A `Renderer`. All text goes through `Text`: nothing in it is read as markup."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._width = min(self._console.width, WIDEST)
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
        )
        self._task = self._progress.add_task("setting up", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def opening(self, scenarios: int) -> None:
        """See `Renderer`."""
        self._progress.update(self._task, total=scenarios)
        code = Padding(Text("\n".join(CODE), "cyan"), (1, 0, 0, 4))
        self._show(Group(Text(TITLE, "bold"), "", Text(INTRODUCTION), code))

    def begins(self, number: int, scenario: Scenario) -> None:
        """See `Renderer`."""
        self._progress.update(self._task, description=scenario.title)

    def ended(self, number: int, report: Report) -> None:
        """See `Renderer`."""
        self._progress.advance(self._task)
        story = Text(report.scenario.story, _ASIDE)
        rows = self._table(report) if self._width >= TABLE else self._list(report)
        below = Padding(Group(story, rows), (0, 0, 0, 3))
        self._show(Group("", self._heading(number, report), below))

    def closing(self, reports: Sequence[Report], seconds: float) -> None:
        """See `Renderer`."""
        if reports and reports[0].dialogue:
            self._show("", Text(DIALOGUE_TITLE, "bold"))
            self._show(*map(_said, annotated(reports[0])))
        kept = all(report.kept for report in reports)
        self._show("", Rule(style=_KEPT if kept else "red", characters="-"))
        self._show(Text(verdict(reports, seconds), f"bold {_KEPT}" if kept else _BROKEN))
        self._show(*(Padding(Text(line), (0, 0, 0, 2)) for line in broken_rows(reports)))
        self._show(Text(NEXT))

    def _show(self, *parts: RenderableType) -> None:
        for part in parts:
            self._console.print(part, width=self._width)

    def _heading(self, number: int, report: Report) -> Table:
        heading = Table.grid(expand=True)
        heading.add_column()
        heading.add_column(justify="right", width=len("0.00 s  BROKEN"))
        seconds, mark = Text(f"{report.seconds:.2f} s  ", _ASIDE), _mark(report.kept)
        heading.add_row(Text(f"{number}  {report.scenario.title}", "bold"), seconds + mark)
        return heading

    def _table(self, report: Report) -> Table:
        table = Table(box=None, expand=True, pad_edge=False, header_style=_ASIDE, padding=(0, 1))
        what, promised, happened, verdict_ = HEADINGS
        table.add_column(what, ratio=1)
        table.add_column(promised, width=VALUES)
        table.add_column(happened, width=VALUES)
        table.add_column(verdict_, width=VERDICT, justify="right")
        for row in report.rows:
            style = "" if row.kept else "bold red"
            cells = (Text(cell, style) for cell in (row.what, row.promised, row.happened))
            table.add_row(*cells, _mark(row.kept))
        return table

    def _list(self, report: Report) -> Table:
        table = Table.grid(padding=(0, 1, 0, 0))
        for row in report.rows:
            table.add_row(_mark(row.kept), Text(sentence(row), "" if row.kept else "bold red"))
        return table


def _mark(kept: bool) -> Text:
    return Text("ok", _KEPT) if kept else Text("BROKEN", _BROKEN)


def _said(turn: Turn) -> RenderableType:
    if not turn.who:
        return Padding(Text(turn.lines[0], "yellow"), (0, 0, 0, 2))
    grid = Table.grid(padding=(0, 1, 0, 0))
    for index, line in enumerate(turn.lines):
        who = turn.who if index == 0 else ""
        style = "cyan" if turn.who == "C" else ""
        grid.add_row(Text(who, _ASIDE), Text(line, style, overflow="ellipsis", no_wrap=True))
    return Padding(grid, (0, 0, 0, 4))
