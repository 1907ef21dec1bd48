"""Messages rendered a second: `txmail.Message` to octets, beside the standard library.

Each message is made from its strings and rendered to the octets that go to a server: with txmail
that includes all checks, the gate and the envelope. ``README.rst`` says how to read the tables.
"""

from __future__ import annotations

import argparse
import itertools
import smtplib
import time
from collections.abc import Callable, Iterator
from email import encoders, policy
from email.message import EmailMessage
from email.mime.base import MIMEBase
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from functools import partial
from typing import NamedTuple

from _harness import Contender, header, interleave, is_installed, sink, table

from txmail import Attachment, Envelope, Message, Template, transport_from_url

SENDER, RECIPIENT = "sender@example.com", "recipient@example.com"
DATE = "Thu, 01 Jan 2026 00:00:00 +0000"
EMAIL_MESSAGE = "EmailMessage, as_bytes"
TEXT = ("The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 31)[:2048]
LINE = "<p>The quick brown fox jumps over the <b>lazy</b> dog &amp; sleeps on.</p>\n"
HTML = "<html><body>\n" + LINE * 109 + "</body></html>\n"


class Letter(NamedTuple):
    """What a message is made of."""

    subject: str
    text: str
    html: str = ""
    data: bytes = b""


CASES = {
    "text, 2 KB": Letter("Your order", TEXT),
    "text and HTML, 2 + 8 KB": Letter("Your order", TEXT, HTML),
    "text and HTML, in lines of 300": Letter(
        "Your order", TEXT, HTML.replace(LINE * 4, LINE[:-1] * 4 + "\n")
    ),
    "text and HTML, not ASCII": Letter(
        "Ihre Bestellung \u00fcber Stra\u00dfenb\u00e4ume",
        TEXT.replace("lazy", "tr\u00e4ge").replace("quick", "schn\u00f6de"),
        HTML.replace("lazy", "tr\u00e4ge").replace("quick", "schn\u00f6de"),
    ),
    "text and 100 KB attached": Letter("Your order", TEXT, "", bytes(range(256)) * 400),
}


def message_of(letter: Letter) -> Message:
    """The `txmail.Message`."""
    attachments = [Attachment("a.pdf", "application/pdf", letter.data)] if letter.data else None
    return Message(
        letter.subject,
        [RECIPIENT],
        letter.text,
        letter.html or None,
        SENDER,
        attachments=attachments,
    )


def with_txmail(letter: Letter) -> bytes:
    """`txmail.Message` to an envelope."""
    return message_of(letter).to_envelope().content


def with_email_message(letter: Letter) -> bytes:
    """The standard library's `EmailMessage`."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, RECIPIENT, letter.subject
    message["Date"], message["Message-ID"] = DATE, "<1@example.com>"
    message.set_content(letter.text)
    if letter.html:
        message.add_alternative(letter.html, subtype="html")
    if letter.data:
        message.add_attachment(letter.data, maintype="application", subtype="pdf", filename="a.pdf")
    return message.as_bytes(policy=policy.SMTP)


def with_template(letter: Letter) -> Callable[[int], Envelope]:
    """`txmail.Template`, compiled: a job to many, each with a name and a number of its own."""
    compiled = Template(
        letter.subject + ", {{ name }}",
        "Dear {{ name }},\n\n" + letter.text + "Order {{ number }}\n",
        letter.html.replace("<body>", "<body>\n<p>Dear {{ name }}: {{ number }}</p>"),
        SENDER,
    ).compile()

    def one(number: int) -> Envelope:
        fields = {"name": "Ann Example", "number": number}
        return compiled.envelope(f"r{number}@example.com", fields)

    return one


def with_mime_text(letter: Letter) -> bytes:
    """Its older classes, such as `MIMEText`."""
    message = MIMEText(letter.text)
    whole: MIMEText | MIMEMultipart = message
    if letter.html:
        whole = MIMEMultipart("alternative")
        whole.attach(message)
        whole.attach(MIMEText(letter.html, "html"))
    if letter.data:
        whole = MIMEMultipart("mixed")
        whole.attach(message)
        attached = MIMEBase("application", "pdf")
        attached.set_payload(letter.data)
        encoders.encode_base64(attached)
        attached.add_header("Content-Disposition", "attachment", filename="a.pdf")
        whole.attach(attached)
    whole["From"], whole["To"], whole["Subject"] = SENDER, RECIPIENT, letter.subject
    whole["Date"], whole["Message-ID"] = DATE, "<1@example.com>"
    return whole.as_bytes()


def with_pyramid_mailer(letter: Letter) -> bytes:
    """pyramid_mailer's `Message`, rendered as its mailer does it."""
    from pyramid_mailer.message import Attachment as TheirAttachment
    from pyramid_mailer.message import Message as TheirMessage

    attachments = [TheirAttachment("a.pdf", "application/pdf", letter.data)] if letter.data else []
    message = TheirMessage(
        letter.subject,
        [RECIPIENT],
        letter.text,
        letter.html or None,
        SENDER,
        attachments=attachments,
    )
    return bytes(message.to_message().as_bytes())


def rendered(render: Callable[[Letter], bytes], letter: Letter, limit: float) -> tuple[int, float]:
    """Render for `limit` seconds."""
    done, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < limit:
        render(letter)
        done += 1
    return done, seconds


def compiled(letter: Letter, limit: float) -> tuple[int, float]:
    """Fill a compiled template for `limit` seconds; compiling it is not counted."""
    fill = with_template(letter)
    done, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < limit:
        fill(done)
        done += 1
    return done, seconds


def render_and_send(
    port: int, letter: Letter, limit: float, render: Callable[[int], Envelope]
) -> tuple[int, float]:
    """txmail: make, render and stream over one open connection."""
    transport = transport_from_url(f"smtp://127.0.0.1:{port}?window=64")
    session = transport.open()
    started = time.perf_counter()

    def made() -> Iterator[Envelope]:
        for number in itertools.count():
            if time.perf_counter() - started >= limit:
                return
            yield render(number)

    done = sum(outcome.status == "accepted" for outcome in session.send(made()))
    seconds = time.perf_counter() - started
    session.close()
    transport.close()
    return done, seconds


def stdlib_render_and_send(port: int, letter: Letter, limit: float) -> tuple[int, float]:
    """The standard library: the same with `EmailMessage` and smtplib."""
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.ehlo()
        done, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < limit:
            client.sendmail(SENDER, [RECIPIENT], with_email_message(letter))
            done += 1
    return done, seconds


def main() -> None:
    """All cases, then rendering and sending."""
    parser = argparse.ArgumentParser(description="Messages rendered a second.")
    parser.add_argument("--quick", action="store_true", help="shorter; ends in seconds")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, at least 5")
    arguments = parser.parse_args()
    header(("txmail", "pyramid_mailer"))
    limit = 0.05 if arguments.quick else 0.4
    renderers = {
        "txmail.Message": with_txmail,
        EMAIL_MESSAGE: with_email_message,
        "MIMEText, as_bytes": with_mime_text,
    }
    if is_installed("pyramid_mailer.message"):
        renderers["pyramid_mailer.Message"] = with_pyramid_mailer
    else:
        print("skipped: pyramid_mailer is not installed")
    for title, letter in CASES.items():
        contenders = [
            Contender(name, partial(rendered, render, letter, limit))
            for name, render in renderers.items()
        ]
        if letter.html and is_installed("jinja2"):
            contenders.append(
                Contender("txmail.Template, compiled", partial(compiled, letter, limit))
            )
        interleave(contenders, arguments.rounds)
        table(f"{title}; {arguments.rounds} rounds", contenders, (EMAIL_MESSAGE,), "messages")
    with sink(chunking=True) as running:
        letter = CASES["text and HTML, 2 + 8 KB"]
        contenders = [
            Contender("txmail.Message",
                      partial(render_and_send, running.port, letter, limit,
                              lambda _: message_of(letter).to_envelope())),
            Contender("EmailMessage, smtplib",
                      partial(stdlib_render_and_send, running.port, letter, limit)),
        ]  # fmt: skip
        if is_installed("jinja2"):
            filled = partial(render_and_send, running.port, letter, limit, with_template(letter))
            contenders.append(Contender("txmail.Template, compiled", filled))
        interleave(contenders, arguments.rounds)
        table(f"rendered and sent over loopback, 2 + 8 KB; {arguments.rounds} rounds",
              contenders, ("EmailMessage, smtplib",), "messages")  # fmt: skip


if __name__ == "__main__":
    main()
