"""The failure table as docs/failures.rst shows it. Run this file to write it there anew.

The page has to hold the table itself: an ``include`` shows nothing where most people read it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import txmail
from txmail.smtp.failure_policy import TABLE, Row

PAGE = Path(txmail.__file__).parents[1] / "docs" / "failures.rst"
HEADS = ("reply or event", "status", "scope", "action", "why, and when again")
WIDTHS = (36, 8, 9, 11, 28)
_BORDER = "  ".join("=" * width for width in WIDTHS)
_SPAN = "-" * len(_BORDER)


def shown() -> str:
    """The table in reStructuredText: a stage is a row of its own, above its replies."""
    by_stage: dict[tuple[str, ...], list[Row]] = {}
    for row in TABLE:
        by_stage.setdefault(row.stages, []).append(row)
    lines = [_BORDER, *_lines(HEADS), _BORDER]
    for stages, rows in by_stage.items():
        lines += [f"**{', '.join(stages)}**", _SPAN]
        for row in rows:
            said = row.event or ", ".join(row.replies)
            verdict = row.verdict
            lines += _lines((said, verdict.status, verdict.scope, verdict.action, row.why))
    return "\n".join([*lines, _BORDER, ""])


def _lines(cells: tuple[str, ...]) -> Iterator[str]:
    """A row; what is too long for the last column goes on below."""
    why = textwrap.wrap(cells[-1], WIDTHS[-1]) or [""]
    for cell, width in zip(cells[:-1], WIDTHS, strict=False):
        assert len(cell) <= width, cell
    for number, last in enumerate(why):
        first = [str(cell) if number == 0 else "" for cell in cells[:-1]]
        padded = (cell.ljust(width) for cell, width in zip([*first, last], WIDTHS, strict=True))
        yield "  ".join(padded).rstrip()


def main() -> None:
    text = PAGE.read_text("utf-8")
    begin = text.index(f"{_BORDER}\n")
    end = text.rindex(f"{_BORDER}\n") + len(_BORDER) + 1
    PAGE.write_text(text[:begin] + shown() + text[end:], "utf-8")


if __name__ == "__main__":
    main()
