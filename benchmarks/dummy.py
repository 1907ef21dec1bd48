"""What the mail costs a test suite: begin, send, commit with the `DummyMailer`.

Compared with the least that a transaction with a participant can cost: begin, join of a data
manager that does nothing, commit. Once with a prepared `Envelope`, once with a `Message` that is
rendered each time, and once with a `Message` that is made each time too.
"""

from __future__ import annotations

import argparse
from functools import partial

import transaction
from _harness import Contender, header, interleave, table, timed
from peers import RECIPIENT, SENDER, contents

from txmail import DummyMailer, Envelope, Message

BASE = "join of a trivial data manager"


class Trivial:
    """A data manager without anything to do."""

    def sortKey(self) -> str:
        """Where in the order does not matter."""
        return "trivial"

    def nothing(self, txn: object) -> None:
        """All that there is to do."""

    abort = tpc_begin = commit = tpc_vote = tpc_finish = tpc_abort = nothing


def trivial(count: int) -> tuple[int, float]:
    """The base."""

    def run() -> None:
        for _ in range(count):
            transaction.begin().join(Trivial())
            transaction.commit()

    return timed(count, run)


def sending(make: object, count: int) -> tuple[int, float]:
    """Send what `make` is, or returns if it is callable, in a transaction of its own each."""
    mailer = DummyMailer()

    def run() -> None:
        for _ in range(count):
            transaction.begin()
            mailer.send(make() if callable(make) else make)
            transaction.commit()

    result = timed(count, run)
    assert len(mailer.outbox) == count
    return result


def new_message() -> Message:
    """A message as an application makes one."""
    return Message("one", [RECIPIENT], body="Hello.\n", sender=SENDER)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="The DummyMailer's cost in a transaction.")
    parser.add_argument("--quick", action="store_true", help="fewer transactions")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, at least 5")
    arguments = parser.parse_args()
    if not 5 <= arguments.rounds <= 100:
        parser.error("--rounds: 5 to 100")
    count = 500 if arguments.quick else 5000
    header(("txmail", "transaction"))
    envelope = Envelope(SENDER, [RECIPIENT], contents(1)[0])
    contenders = [
        Contender(BASE, partial(trivial, count)),
        Contender("DummyMailer, prepared Envelope", partial(sending, envelope, count)),
        Contender("DummyMailer, one Message", partial(sending, new_message(), count)),
        Contender("DummyMailer, new Message each", partial(sending, new_message, count)),
    ]
    interleave(contenders, arguments.rounds)
    title = f"{count} transactions; {arguments.rounds} rounds"
    table(title, contenders, (BASE,), "transactions")
    for contender in contenders:
        microseconds = sorted(1e6 / rate for rate in contender.rates)[len(contender.rates) // 2]
        print(f"{contender.name}: {microseconds:.1f} microseconds a transaction")


if __name__ == "__main__":
    main()
