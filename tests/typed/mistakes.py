"""What a type checker has to find: there is a mistake in each line that says so."""

from __future__ import annotations

from txmail import (
    Attachment,
    DummyMailer,
    Envelope,
    Mailer,
    Message,
    Template,
    get_mailer,
    mailer_from_settings,
    start_worker,
    transport_from_url,
)

mailer = mailer_from_settings({"mail.url": "memory:"})
message = Message("x", ["ann@example.com"], "x")
template = Template(subject="x", text="x", sender="a@example.com")
dummy = DummyMailer()

mailer.send(42)  # mistake
mailer.send("Subject: x")  # mistake
mailer.send(None)  # mistake
mailer.send(Message)  # mistake
mailer.send(message, "a@example.com")  # mistake
mailer.send(message, sender=42)  # mistake
mailer.send(message, recipients="ann@example.com")  # mistake
mailer.send(message, recipients=[42])  # mistake
mailer.send(message, prioriy="high")  # mistake
mailer.sent(message)  # mistake
mailer.enqueue(42)  # mistake
mailer.enqueue(message, priority="hihg")  # mistake
mailer.enqueue(message, priority=1)  # mistake
mailer.enqueue(message, not_before="tomorrow")  # mistake
mailer.enqueue(message, expires=3600)  # mistake
mailer.enqueue(message, idempotency_key=1)  # mistake
mailer.enqueue(message, wake="no")  # mistake
mailer.send_immediately(42)  # mistake
mailer.send_immediately(message, fail_silently="yes")  # mistake
mailer.bind(sesion=None)  # mistake
mailer.bind(default_sender=42)  # mistake
mailer.bind(transaction_manager=42)  # mistake
mailer.bind(session=42)  # mistake
mailer.bind().sned(message)  # mistake
mailer.queue.counts()  # mistake
mailer.last_outcomes[0].statu  # mistake
mailer.last_outcomes[0].reply.code  # mistake
mailer.default_sender.upper()  # mistake
mailer.transport.opn()  # mistake
mailer.events.subscribe(42)  # mistake
mailer_from_settings(["mail.url"])  # mistake
mailer_from_settings({"mail.url": "memory:"}, 42)  # mistake
transport_from_url(25)  # mistake
transport_from_url("memory:").opne()  # mistake
get_mailer(None).sned(message)  # mistake
start_worker(message)  # mistake
start_worker(mailer, leese=60.0)  # mistake
start_worker(mailer, lease="60")  # mistake
start_worker(mailer).stopp()  # mistake
start_worker(mailer).stop(timeout="5")  # mistake
dummy.outbox[0].subjcet  # mistake
dummy.queue[0].subjcet  # mistake
dummy.pending[0].subjcet  # mistake
dummy.envelopes[0].sendr  # mistake
dummy.refuse(550)  # mistake
Mailer("smtp://localhost")  # mistake
Mailer(mailer.transport, delivery="queu")  # mistake
Mailer(mailer.transport, preflight="allways")  # mistake
Mailer(mailer.transport, on_partial="ignore")  # mistake
Mailer(mailer.transport, commit_timeout="30")  # mistake
Mailer(mailer.transport, queue="sqlite://")  # mistake
Message(42)  # mistake
Message("x", "ann@example.com", "x")  # mistake
Message("x", [42], "x")  # mistake
Message("x", ["ann@example.com"], body=b"x")  # mistake
Message("x", ["ann@example.com"], "x", cc="bob@example.com")  # mistake
Message("x", ["ann@example.com"], "x", bodyy="x")  # mistake
Message("x", ["ann@example.com"], "x", attachments=["bill.pdf"])  # mistake
message.attach("bill.pdf")  # mistake
message.add_recipient(42)  # mistake
Attachment("bill.pdf", "application/pdf", 42)  # mistake
Envelope("a@example.com", ("ann@example.com",), "x")  # mistake
Envelope("a@example.com", "ann@example.com", b"x")  # mistake
template.render("Ann")  # mistake
template.render({"name": "Ann"}).subjcet  # mistake
