"""What the demo says around the scenarios."""

from __future__ import annotations

from collections.abc import Sequence

from .dialogue import Turn
from .scenario import Report, Row

TITLE = "txmail demo: mail that leaves if, and only if, the transaction commits"

INTRODUCTION = (
    "Each scenario opens a real ZODB, a real SQLite database and a mail server on this machine. "
    "No mail leaves the machine, and no file stays behind. For each invoice the application does "
    "this, and then the transaction commits or aborts:"
)

CODE = (
    "session.add(Invoice(...))       a row in SQLite",
    "invoices[number] = ...          an object in the ZODB",
    "mailer.send(Message(...))       a mail",
)

#: Over the four columns of a scenario's table.
HEADINGS = ("measured", "promised", "happened", "")

#: Columns of the values, for the longest in the scenarios, and of the verdict.
VALUES, VERDICT = len("DeliveryUnavailable"), len("BROKEN")

DIALOGUE_TITLE = "The dialogue of scenario 1"
#: Before the dialogue, and before the first DATA in it.
ASKING = "commit() asks first, and can still take all of it back:"
SENDING = "Both databases have voted yes. Sending is the last vote:"

NEXT = (
    "Read next: README.rst for your own first transaction; "
    "python -m pydoc txmail, which follows one message through the code; "
    "txmail/cli/demo/scenarios.py, which is what ran here."
)


def annotated(report: Report) -> list[Turn]:
    """The dialogue of `report` with the remarks `ASKING` and `SENDING`, if it bears them out."""
    if not report.kept:
        return list(report.dialogue)
    found: list[Turn] = [Turn("", (ASKING,))]
    sending = False
    for turn in report.dialogue:
        if not sending and "DATA" in turn.lines:
            found.append(Turn("", (SENDING,)))
            sending = True
        found.append(turn)
    return found


def sentence(row: Row) -> str:
    """`row` in words, without its verdict."""
    return f"{row.what.strip(' ')}: promised {row.promised}, happened {row.happened}"


def verdict(reports: Sequence[Report], seconds: float) -> str:
    """One sentence: how many promises there were, and how many of them were broken."""
    rows = [row for report in reports for row in report.rows]
    broken = sum(not row.kept for row in rows)
    if broken:
        return f"{broken} of {len(rows)} promises were BROKEN ({seconds:.1f} s):"
    return f"All {len(rows)} promises in {len(reports)} scenarios were kept ({seconds:.1f} s)."


def broken_rows(reports: Sequence[Report]) -> list[str]:
    """A line for each broken promise."""
    return [
        f"{number}. {report.scenario.title}: {sentence(row)}"
        for number, report in enumerate(reports, 1)
        for row in report.rows
        if not row.kept
    ]
