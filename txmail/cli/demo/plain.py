"""Shows a run as plain text: ASCII, for pipes, logs and terminals without colours."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Self, TextIO

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

#: Columns below which nothing gets narrower.
_NARROWEST = 30
_GAP = "  "


class Plain:
    """A `Renderer` that writes lines to `stream`, as wide as the terminal, or COLUMNS, says."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        columns = shutil.get_terminal_size((80, 24)).columns - 1
        self._width = max(_NARROWEST, min(columns, WIDEST))
        what = self._width - 2 - 2 * VALUES - VERDICT - 3 * len(_GAP)
        self._columns = (what, VALUES, VALUES, VERDICT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stream.flush()

    def opening(self, scenarios: int) -> None:
        """See `Renderer`."""
        self._paragraph(TITLE)
        self._say("=" * self._width, "")
        self._paragraph(INTRODUCTION)
        self._say("", *(f"    {line}" for line in CODE))

    def begins(self, number: int, scenario: Scenario) -> None:
        """See `Renderer`: nothing moves here."""

    def ended(self, number: int, report: Report) -> None:
        """See `Renderer`."""
        self._say("")
        self._heading(f"{number}. {report.scenario.title}", f"{report.seconds:.2f} s")
        self._paragraph(report.scenario.story, indent="  ")
        self._say("")
        if self._width >= TABLE:
            self._row(*HEADINGS)
            for row in report.rows:
                self._row(row.what, row.promised, row.happened, row.verdict)
        else:
            for row in report.rows:
                self._paragraph(f"{row.verdict:<{VERDICT}} {sentence(row)}", hanging=VERDICT + 1)

    def closing(self, reports: Sequence[Report], seconds: float) -> None:
        """See `Renderer`."""
        if reports and reports[0].dialogue:
            self._say("")
            self._heading(DIALOGUE_TITLE)
            for turn in annotated(reports[0]):
                self._turn(turn)
        self._say("", "=" * self._width)
        self._paragraph(verdict(reports, seconds))
        for line in broken_rows(reports):
            self._paragraph(line, indent="  ")
        self._paragraph(NEXT)

    def _say(self, *lines: str) -> None:
        self._stream.writelines(f"{line.rstrip(' ')}\n" for line in lines)
        self._stream.flush()

    def _paragraph(self, text: str, indent: str = "", hanging: int = 0) -> None:
        self._say(
            *textwrap.wrap(
                text,
                self._width,
                initial_indent=indent,
                subsequent_indent=indent + " " * hanging,
                break_on_hyphens=False,
            )
        )

    def _heading(self, left: str, right: str = "") -> None:
        first, *rest = textwrap.wrap(left, self._width - len(right) - 1)
        self._say(f"{first:<{self._width - len(right)}}{right}", *rest, "-" * self._width)

    def _turn(self, turn: Turn) -> None:
        for index, line in enumerate(turn.lines):
            prefix = f"    {turn.who if index == 0 else ' '} " if turn.who else "  "
            self._say((prefix + line)[: self._width])

    def _row(self, *cells: str) -> None:
        wrapped = [_wrapped(*cell) for cell in zip(cells, self._columns, strict=True)]
        for parts in zip_longest(*wrapped, fillvalue=""):
            padded = (part.ljust(width) for part, width in zip(parts, self._columns, strict=True))
            self._say("  " + _GAP.join(padded))


def _wrapped(text: str, width: int) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip(" ")))
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)
