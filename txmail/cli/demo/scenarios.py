"""The scenarios, one function each; `SCENARIOS` names the promises of each."""

from __future__ import annotations

from collections.abc import Iterable

from ...exceptions import DeliveryError
from ...queue.queue import Queue
from ...testing import Callback
from ...worker import run_once
from .dialogue import moment_of
from .scenario import Scenario
from .setup import (
    CONNECTIONS,
    CUSTOMERS,
    DATAS,
    EHLOS,
    MAILS,
    OBJECTS,
    ROWS,
    Setup,
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


def _ten_mails(setup: Setup) -> Values:
    with setup.transaction() as shop:
        for number in range(1, 11):
            shop.bill(number)
        mails_before = len(setup.catcher.messages)
    (connection,) = setup.catcher.connections
    (committed,) = setup.sqlite_commits
    asked = moment_of(connection, "RCPT") < committed
    sent = moment_of(connection, "DATA") > committed
    return {_MAILS_BEFORE: mails_before, _ASKED: _yes_no(asked), _SENT: _yes_no(sent)}


def _abort(setup: Setup) -> Values:
    class ChangeOfMind(Exception):
        pass

    with _Caught() as caught, setup.transaction() as shop:
        for number in range(1, 4):
            shop.bill(number)
        raise ChangeOfMind
    return {"the application raises": caught.name}


def _savepoint(setup: Setup) -> Values:
    with setup.transaction() as shop:
        for number in (1, 2, 3):
            savepoint = setup.manager.savepoint()
            shop.keep(number)
            shop.mail(number)
            if number == 2:
                savepoint.rollback()
    return {_KEPT: _listed(setup.objects()), _MAILED: _listed(setup.mailed())}


def _refused_recipient(setup: Setup) -> Values:
    setup.catcher.refuse(address(2))
    with _Caught() as caught, setup.transaction() as shop:
        for number in range(1, 4):
            shop.bill(number)
    refused = [recipient for recipient, status in caught.statuses if status == "failed"]
    return {_RAISED: caught.name, _REFUSED: ", ".join(refused) or "none"}


def _server_down(setup: Setup) -> Values:
    setup.catcher.stop()
    with _Caught() as caught, setup.transaction() as shop:
        shop.bill(1)
    rows, objects = len(setup.rows()), len(setup.objects())
    temporary = isinstance(caught.error, DeliveryError) and caught.error.temporary
    setup.catcher.restart()
    with setup.transaction() as shop:
        shop.bill(1)
    return {
        _RAISED: caught.name,
        _TEMPORARY: _yes_no(temporary),
        _ROWS_DOWN: rows,
        _OBJECTS_DOWN: objects,
    }


def _database_votes_no(setup: Setup) -> Values:
    with _Caught() as caught, setup.transaction() as shop:
        shop.bill(1)
        shop.bill(2, customer=CUSTOMERS + 1)
    return {_RAISED: caught.name}


def _write_conflict(setup: Setup) -> Values:
    mails_at_start: list[int] = []
    for attempt in setup.manager.attempts(3):
        with setup.shop() as shop, attempt:
            mails_at_start.append(len(setup.catcher.messages))
            shop.bill(1)
            if len(mails_at_start) == 1:
                setup.rival_writes(2)
    return {_TRIES: len(mails_at_start), _MAILS_FIRST: mails_at_start[-1]}


def _fifty_invoices(setup: Setup) -> Values:
    setup.catcher.refuse(address(_REFUSED_NUMBER))
    numbers = range(1, CUSTOMERS + 1)
    failed, errors = [], set()
    for number in numbers:
        with _Caught() as caught, setup.transaction() as shop:
            shop.bill(number)
        if caught.error is not None:
            failed.append(number)
            errors.add(caught.name)
    return {
        _FAILURES: _listed(failed),
        _RAISED: ", ".join(sorted(errors)) or "nothing",
        _NO_MAIL: _listed(set(numbers) - set(setup.mailed())),
        _NO_ROW: _listed(set(numbers) - set(setup.rows())),
        _NO_OBJECT: _listed(set(numbers) - set(setup.objects())),
    }


def _server_dies(setup: Setup) -> Values:
    setup.catcher.on(".", Callback(setup.catcher.kill), after=1)
    with _Caught() as caught, setup.transaction() as shop:
        for number in range(1, 4):
            shop.bill(number)
    error = caught.error
    committed = isinstance(error, DeliveryError) and error.databases_may_be_committed
    named = {f"  {recipient}": status for recipient, status in caught.statuses}
    return {_RAISED: caught.name, **named, _MAY_BE_COMMITTED: _yes_no(committed)}


def _queue_behind(setup: Setup) -> Values:
    queue = setup.open_queue()
    setup.catcher.stop()
    with _Caught() as caught, setup.transaction() as shop:
        for number in range(1, 4):
            shop.bill(number)
    with _Caught(), setup.transaction() as shop:
        shop.bill(4)
        raise ArithmeticError
    waiting = sum(queue.counts().values())
    setup.catcher.restart()
    sent = run_once(queue, setup.mailer.transport)
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
        "Nothing leaves before the commit. Then txmail asks the server about all mails, the "
        "databases vote, and the mails leave over one connection.",
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
        "The application calls send() three times and then raises an error. "
        "Nobody connects to the server.",
        {"the application raises": "ChangeOfMind", MAILS: 0, CONNECTIONS: 0, **_NOTHING_KEPT},
        _abort,
    ),
    Scenario(
        "A savepoint that is rolled back",
        "The application takes back the second of three invoices. (In the ZODB alone: "
        "zope.sqlalchemy has no savepoints on SQLite.)",
        {_KEPT: "1, 3", _MAILED: "1, 3", MAILS: 2, OBJECTS: 2},
        _savepoint,
    ),
    Scenario(
        "A refused recipient",
        "The server does not know one of three customers. txmail asks it before anything is sent "
        "or committed, so nobody gets a mail and both databases roll back.",
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
        "(a deferred foreign key). txmail has asked the server by then, and sends nothing.",
        {_RAISED: "IntegrityError", MAILS: 0, DATAS: 0, **_NOTHING_KEPT},
        _database_votes_no,
    ),
    Scenario(
        "A write conflict, tried again",
        "Another process changes the same object of the ZODB, so the first try fails and the "
        "second commits. The mail leaves once. (One of two invoices in the ZODB is the other "
        "process's.)",
        {_TRIES: 2, _MAILS_FIRST: 0, MAILS: 1, ROWS: 1, OBJECTS: 2},
        _write_conflict,
    ),
    Scenario(
        "Fifty invoices in fifty transactions",
        f"The server refuses the customer of number {_REFUSED_NUMBER}. Both databases roll that "
        "invoice back; all others are mailed over one connection.",
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
        "With a queue the same commit succeeds, and the queue holds its mail. A fourth invoice is "
        "rolled back, and so is its mail. When the server is back, a worker sends what the queue "
        "holds.",
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
        "Here is the limit: txmail cannot take back what a server has accepted. The server dies "
        "at the end of the second of three mails. The error says what became of each mail. It also "
        "says that SQLite, which commits in its own vote, may have committed; the ZODB rolls back.",
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
