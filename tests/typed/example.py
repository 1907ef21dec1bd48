"""What an application does with txmail: nothing here is a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage

import transaction

from txmail import (
    Attachment,
    DummyMailer,
    Envelope,
    Mailer,
    Message,
    Outcome,
    Template,
    get_mailer,
    mailer_from_settings,
    start_worker,
    transport_from_url,
)
from txmail.exceptions import DeliveryError, DeliveryRefused, PartialDelivery
from txmail.queue.queue import Queue
from txmail.worker import RunningWorker


def people() -> Iterator[str]:
    yield "ann@example.com"


def order(mailer: Mailer) -> str:
    message = Message("Your order", ["ann@example.com"], "Thank you!", sender="shop@example.com")
    message.attach(Attachment("bill.pdf", "application/pdf", b"%PDF"))
    message.add_cc("bob@example.com")
    with transaction.manager:
        first: str = mailer.send(message)
        mailer.send(message, sender="app@example.com", recipients=("cy@example.com",))
        mailer.enqueue(
            message,
            priority="high",
            not_before=datetime.now(UTC) + timedelta(hours=1),
            idempotency_key="order-1",
            wake=False,
        )
    return first


def others(mailer: Mailer) -> list[str]:
    letter = EmailMessage()
    letter["To"] = "ann@example.com"
    ready = Envelope("app@example.com", ("ann@example.com",), b"Subject: x\r\n\r\nx\r\n")
    template = Template(subject="Dear {{ name }}", text="Hello", sender="app@example.com")
    message = template.render({"name": "Ann"}, recipients=["ann@example.com"])
    return [
        mailer.send(letter),
        mailer.send(ready),
        mailer.send(message),
        mailer.send(Message("x", people(), "x")),
        mailer.send(Message("x", {"ann@example.com"}, "x", reply_to=("Ann", "ann@example.com"))),
    ]


def now(mailer: Mailer, message: Message) -> bool:
    try:
        outcomes = mailer.send_immediately(message, fail_silently=True)
    except (DeliveryRefused, PartialDelivery) as error:
        outcomes = error.outcomes
    except DeliveryError as error:
        return bool(error.outcomes)
    last: tuple[Outcome, ...] = mailer.last_outcomes
    return all(outcome.status == "accepted" and outcome.reply for outcome in (*outcomes, *last))


def begin(settings: dict[str, str]) -> Mailer:
    mailer = mailer_from_settings(settings)
    own: Mailer = mailer.bind(
        transaction_manager=transaction.manager, default_sender="app@example.com"
    )
    queue = own.queue
    if queue is not None:
        counts: dict[str, int] = queue.counts()
        assert queue.name
        assert counts.get("ready", 0) >= 0
    worker: RunningWorker = start_worker(own, limit=10, lease=60.0)
    worker.stop(timeout=5.0)
    return Mailer(transport_from_url("memory:"), queue=Queue("sqlite:////tmp/mail.db"))


def tested() -> str:
    mailer = DummyMailer()
    with transaction.manager:
        mailer.bind(default_sender="a@example.com").send(Message("x", ["ann@example.com"], "x"))
    return mailer.outbox[0].subject + str(len(mailer.queue)) + mailer.envelopes[0].sender


def view(request: object) -> str:
    mailer = get_mailer(request)
    return mailer.send(Message("x", ["ann@example.com"], "x"))
