"""The scenarios, one function each; what each one promises stands beside it in `SCENARIOS`."""

from __future__ import annotations

from collections.abc import Iterable

from ...exceptions import DeliveryError
from ...queue.queue import Queue
from ...testing import Callback
from ...worker import run_once
from .dialogue import moment_of
from .scenario import Scenario
from .stage import (
    CONNECTIONS,
    CUSTOMERS,
    DATAS,
    EHLOS,
    MAILS,
    OBJECTS,
    ROWS,
    Stage,
    Values,
    address,
)

_MAILS_BEFORE = "mails before the commit"
_ASKED, _SENT = "asked before SQL commits", "sent after SQL commits"
_RAISED = "commit() raises"
_REFUSED = "the error names"
_TEMPORARY = "it may work later, it says"
_KEPT = "invoices that are left"
_MAILED = "invoices that were mailed"
_TRIES = "tries"
_MAILS_FIRST = "mails after the first try"
_FAILURES = "transactions that fail"
_NO_MAIL = "numbers without a mail"
_NO_ROW = "numbers not in SQLite"
_NO_OBJECT = "numbers not in the ZODB"
_ROWS_DOWN = "in SQLite, server down"
_OBJECTS_DOWN = "in the ZODB, server down"
_WAITING = "in the queue, server down"
_DRAINED = "sent by a worker later"
_STATES = "in the queue at last"
_MAY_BE_COMMITTED = "the error warns of SQLite"

#: The invoice whose customer the server refuses.
_REFUSED_NUMBER = 37


class _Caught:
    """A context that holds the error, if any, that ended it."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> _Caught:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        self.error = error
        return error is None or isinstance(error, Exception)

    @property
    def name(self) -> str:
        return type(self.error).__name__ if self.error is not None else "nothing"

    @property
    def statuses(self) -> list[tuple[str, str]]:
        """Each recipient and what became of it, if it was a `DeliveryError`."""
        outcomes = self.error.outcomes if isinstance(self.error, DeliveryError) else ()
        return [(outcome.recipient, str(outcome.status)) for outcome in outcomes]


def _ten_mails(stage: Stage) -> Values:
    with stage.transaction() as shop:
        for number in range(1, 11):
            shop.bill(number)
        mails_before = len(stage.catcher.messages)
    (connection,) = stage.catcher.connections
    (committed,) = stage.sqlite_commits
    asked = moment_of(connection, "RCPT") < committed
    sent = moment_of(connection, "DATA") > committed
    return {_MAILS_BEFORE: mails_before, _ASKED: _yes_no(asked), _SENT: _yes_no(sent)}


def _abort(stage: Stage) -> Values:
    class ChangeOfMind(Exception):
        pass

    with _Caught() as caught, stage.transaction() as shop:
        for number in range(1, 4):
            shop.bill(number)
        raise ChangeOfMind
    return {"the application raises": caught.name}


def _savepoint(stage: Stage) -> Values:
    with stage.transaction() as shop:
        for number in (1, 2, 3):
            savepoint = stage.manager.savepoint()
            shop.keep(number)
            shop.mail(number)
            if number == 2:
                savepoint.rollback()
    return {_KEPT: _listed(stage.objects()), _MAILED: _listed(stage.mailed())}


def _refused_recipient(stage: Stage) -> Values:
    stage.catcher.refuse(address(2))
    with _Caught() as caught, stage.transaction() as shop:
        for number in range(1, 4):
            shop.bill(number)
    refused = [recipient for recipient, status in caught.statuses if status == "failed"]
    return {_RAISED: caught.name, _REFUSED: ", ".join(refused) or "none"}


def _server_down(stage: Stage) -> Values:
    stage.catcher.stop()
    with _Caught() as caught, stage.transaction() as shop:
        shop.bill(1)
    rows, objects = len(stage.rows()), len(stage.objects())
    temporary = isinstance(caught.error, DeliveryError) and caught.error.temporary
    stage.catcher.restart()
    with stage.transaction() as shop:
        shop.bill(1)
    return {
        _RAISED: caught.name,
        _TEMPORARY: _yes_no(temporary),
        _ROWS_DOWN: rows,
        _OBJECTS_DOWN: objects,
    }


def _database_votes_no(stage: Stage) -> Values:
    with _Caught() as caught, stage.transaction() as shop:
        shop.bill(1)
        shop.bill(2, customer=CUSTOMERS + 1)
    return {_RAISED: caught.name}


def _write_conflict(stage: Stage) -> Values:
    mails_at_start: list[int] = []
    for attempt in stage.manager.attempts(3):
        with stage.shop() as shop, attempt:
            mails_at_start.append(len(stage.catcher.messages))
            shop.bill(1)
            if len(mails_at_start) == 1:
                stage.rival_writes(2)
    return {_TRIES: len(mails_at_start), _MAILS_FIRST: mails_at_start[-1]}


def _fifty_invoices(stage: Stage) -> Values:
    stage.catcher.refuse(address(_REFUSED_NUMBER))
    numbers = range(1, CUSTOMERS + 1)
    failed, errors = [], set()
    for number in numbers:
        with _Caught() as caught, stage.transaction() as shop:
            shop.bill(number)
        if caught.error is not None:
            failed.append(number)
            errors.add(caught.name)
    return {
        _FAILURES: _listed(failed),
        _RAISED: ", ".join(sorted(errors)) or "nothing",
        _NO_MAIL: _listed(set(numbers) - set(stage.mailed())),
        _NO_ROW: _listed(set(numbers) - set(stage.rows())),
        _NO_OBJECT: _listed(set(numbers) - set(stage.objects())),
    }


def _server_dies(stage: Stage) -> Values:
    stage.catcher.on(".", Callback(stage.catcher.kill), after=1)
    with _Caught() as caught, stage.transaction() as shop:
        for number in range(1, 4):
            shop.bill(number)
    error = caught.error
    committed = isinstance(error, DeliveryError) and error.databases_may_be_committed
    named = {f"  {recipient}": status for recipient, status in caught.statuses}
    return {_RAISED: caught.name, **named, _MAY_BE_COMMITTED: _yes_no(committed)}


def _queue_behind(stage: Stage) -> Values:
    queue = stage.open_queue()
    stage.catcher.stop()
    with _Caught() as caught, stage.transaction() as shop:
        for number in range(1, 4):
            shop.bill(number)
    with _Caught(), stage.transaction() as shop:
        shop.bill(4)
        raise ArithmeticError
    waiting = sum(queue.counts().values())
    stage.catcher.restart()
    sent = run_once(queue, stage.mailer.transport)
    return {_RAISED: caught.name, _WAITING: waiting, _DRAINED: sent, _STATES: _counted(queue)}


def _counted(queue: Queue) -> str:
    return ", ".join(f"{count} {state}" for state, count in queue.counts().items())


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


_NOTHING_KEPT = {ROWS: 0, OBJECTS: 0}

SCENARIOS = (
    Scenario(
        "Ten mails in one transaction",
        "Nothing leaves before the commit. Then the server is asked about all mails, the databases "
        "vote, and the mails go out: over one connection.",
        {
            _MAILS_BEFORE: 0,
            _ASKED: "yes",
            _SENT: "yes",
            MAILS: 10,
            CONNECTIONS: 1,
            EHLOS: 1,
            ROWS: 10,
            OBJECTS: 10,
        },
        _ten_mails,
    ),
    Scenario(
        "A transaction that is aborted",
        "The application raises an error after it has sent three mails. "
        "The server does not even hear of us.",
        {"the application raises": "ChangeOfMind", MAILS: 0, CONNECTIONS: 0, **_NOTHING_KEPT},
        _abort,
    ),
    Scenario(
        "A savepoint that is rolled back",
        "Of three invoices the second is taken back. (In the ZODB alone: zope.sqlalchemy has no "
        "savepoints on SQLite.)",
        {_KEPT: "1, 3", _MAILED: "1, 3", MAILS: 2, OBJECTS: 2},
        _savepoint,
    ),
    Scenario(
        "A refused recipient",
        "The server does not know one of three customers. It is asked before anything is sent or "
        "committed, so nobody gets a mail and both databases roll back.",
        {
            _RAISED: "DeliveryRefused",
            _REFUSED: address(2),
            MAILS: 0,
            DATAS: 0,
            **_NOTHING_KEPT,
        },
        _refused_recipient,
    ),
    Scenario(
        "A server that is down, and comes back",
        "The commit fails with an error that says it may work later; later it does.",
        {
            _RAISED: "DeliveryUnavailable",
            _TEMPORARY: "yes",
            _ROWS_DOWN: 0,
            _OBJECTS_DOWN: 0,
            MAILS: 1,
            ROWS: 1,
            OBJECTS: 1,
        },
        _server_down,
    ),
    Scenario(
        "A database that votes no",
        "One invoice is for a customer who does not exist; SQLite finds out at its COMMIT "
        "(a deferred foreign key). The server has been asked, and gets no mail.",
        {_RAISED: "IntegrityError", MAILS: 0, DATAS: 0, **_NOTHING_KEPT},
        _database_votes_no,
    ),
    Scenario(
        "A write conflict, tried again",
        "Somebody else changes the same object of the ZODB, so the first try fails and the second "
        "commits. The mail leaves once. (Of two invoices in the ZODB one is theirs.)",
        {_TRIES: 2, _MAILS_FIRST: 0, MAILS: 1, ROWS: 1, OBJECTS: 2},
        _write_conflict,
    ),
    Scenario(
        "Fifty invoices in fifty transactions",
        f"The server refuses the customer of number {_REFUSED_NUMBER}. That one is rolled back "
        "everywhere; all others are mailed over one connection.",
        {
            _FAILURES: _REFUSED_NUMBER,
            _RAISED: "DeliveryRefused",
            MAILS: 49,
            ROWS: 49,
            OBJECTS: 49,
            _NO_MAIL: _REFUSED_NUMBER,
            _NO_ROW: _REFUSED_NUMBER,
            _NO_OBJECT: _REFUSED_NUMBER,
            CONNECTIONS: 1,
            EHLOS: 1,
        },
        _fifty_invoices,
    ),
    Scenario(
        "A server that is down, and a queue",
        "With a queue the same commit succeeds: its mail is in the queue, exactly as its invoices "
        "are in the databases. A fourth invoice is rolled back, and so is its mail. When the "
        "server is back, a worker sends what there is.",
        {
            _RAISED: "nothing",
            _WAITING: 3,
            _DRAINED: 3,
            _STATES: "3 sent",
            MAILS: 3,
            CONNECTIONS: 1,
            ROWS: 3,
            OBJECTS: 3,
        },
        _queue_behind,
    ),
    Scenario(
        "A server that dies in mid-session",
        "Here is the limit: what a server has accepted cannot be taken back. It dies at the end of "
        "the second of three mails. The error names what became of each, and that SQLite, which "
        "commits in its own vote, may have committed; the ZODB is rolled back.",
        {
            _RAISED: "PartialDelivery",
            f"  {address(1)}": "accepted",
            f"  {address(2)}": "in_doubt",
            f"  {address(3)}": "unsent",
            _MAY_BE_COMMITTED: "yes",
            MAILS: 1,
            ROWS: 3,
            OBJECTS: 0,
        },
        _server_dies,
    ),
)
