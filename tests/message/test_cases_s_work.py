"""Work is in proportion to the input, at every door that takes text.

Counted are lines of Python, those of the libraries that are called too, and the steps of our
regular expressions (`regex_steps`). Neither depends on the machine. Four times the text may take
little more than four times the work; what is refused for its size may take less.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import sys

import pytest
import regex_steps

from txmail import (
    Attachment,
    Envelope,
    Message,
    Template,
    mailer_from_settings,
    transport_from_url,
)
from txmail.address import parse_address, parse_domain, parse_mailbox
from txmail.exceptions import TxmailError
from txmail.message import to_envelope
from txmail.reply import EnhancedStatus
from txmail.secret import Secret
from txmail.smtp.replies import ReplyParser

HEAD = "From: a@b.c\r\nDate: x\r\nMessage-ID: <a@b>\r\n"
HELLO = {"subject": "hello", "recipients": ["a@b.c"], "body": "text", "sender": "me@x.y"}


def work(function, text) -> int:
    """The lines and steps that ``function(text)`` takes; what it raises of ours is no matter."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename == regex_steps.__file__:
            return None
        lines += 1
        return trace

    with regex_steps.counted() as steps:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with contextlib.suppress(TxmailError):
                function(text)
        finally:
            sys.settrace(before)
        return lines + steps()


def hello(**options):
    return Message(**{**HELLO, **options}).to_envelope()


def attached(**options):
    given = {"filename": "a.txt", "content_type": "text/plain", "data": b"x", **options}
    return hello(attachments=[Attachment(**given)])


def of_octets(text):
    content = text.encode("utf-8", "surrogatepass")
    return to_envelope(Envelope("a@b.c", ["a@b.c"], content))


def filled(text):
    letter = Template("{{ a }}", "{{ a }}\nto {{ a }}", html="<p>{{ a }}", sender="me@x.y")
    letter.render({"a": text}, ["a@b.c"]).to_envelope()


def compiled(text):
    letter = Template("{{ a }}", "{{ a }}\nto {{ a }}", html="<p>{{ a }}", sender="me@x.y")
    letter.compile().envelope("a@b.c", {"a": text})


def setting(name):
    return lambda text: mailer_from_settings({f"mail.{name}": text}).close()


def server_says(text):
    parser = ReplyParser()
    for line in text.splitlines():
        parser.feed(b"250 " + line.encode("utf-8", "replace") + b"\r\n")
    parser.feed(text.encode("utf-8", "replace"))


ENTRIES = {
    "subject": lambda text: hello(subject=text),
    "body": lambda text: hello(body=text),
    "html": lambda text: hello(html=text),
    "calendar": lambda text: hello(calendar=text),
    "method of a calendar": lambda text: hello(calendar="METHOD:REQUEST" + text),
    "sender": lambda text: hello(sender=text),
    "name of the sender": lambda text: hello(sender=(text, "a@b.c")),
    "name before an address": lambda text: hello(sender=f"{text} <a@b.c>"),
    "recipients": lambda text: hello(recipients=[text]),
    "reply_to": lambda text: hello(reply_to=f'"{text}" <a@b.c>'),
    "envelope_sender": lambda text: hello(envelope_sender=text),
    "value of a header": lambda text: hello(extra_headers={"X-A": text}),
    "In-Reply-To": lambda text: hello(extra_headers={"In-Reply-To": text}),
    "mailbox of a header": lambda text: hello(extra_headers={"Errors-To": text}),
    "name of a header": lambda text: hello(extra_headers={text: "x"}),
    "list_id": lambda text: hello(list_id=text),
    "list_unsubscribe": lambda text: hello(list_unsubscribe="https://x.y/" + text),
    "message_id": lambda text: hello(message_id=f"<{text}@x.y>"),
    "filename": lambda text: attached(filename=text),
    "content_type": lambda text: attached(content_type="text/plain" + text),
    "parameter": lambda text: attached(content_type=f'text/plain; a="{text}'),
    "disposition": lambda text: attached(disposition=text),
    "content_id": lambda text: attached(content_id=text),
    "text of an attachment": lambda text: attached(data=text, transfer_encoding="quoted-printable"),
    "subject of a template": lambda text: Template(text, "text").render({}, ["a@b.c"]),
    "text of a template": lambda text: Template("hello", text).render({}, ["a@b.c"]),
    "field": filled,
    "field of what is compiled": compiled,
    "address": parse_address,
    "domain": parse_domain,
    "domain of labels": lambda text: parse_domain("é." + text),
    "mailbox": parse_mailbox,
    "header section": lambda text: of_octets(f"{text}\r\n\r\ntext\r\n"),
    "header of octets": lambda text: of_octets(f"{HEAD}X: {text}\r\n\r\ntext\r\n"),
    "body of octets": lambda text: of_octets(f"{HEAD}\r\n{text}\r\n"),
    "Message-ID of octets": lambda text: of_octets(f"Message-ID:{text}\r\n\r\ntext\r\n"),
    "url": transport_from_url,
    "host": lambda text: transport_from_url(f"smtp://{text}"),
    "port": lambda text: transport_from_url(f"smtp://localhost:{text}"),
    "zone": lambda text: transport_from_url(f"smtp://[fe80::1%25{text}]"),
    "credentials": lambda text: transport_from_url(f"smtps://{text}:pw@localhost"),
    "options": lambda text: transport_from_url(f"smtp://localhost?{text}"),
    "timeout": lambda text: transport_from_url(f"smtp://localhost?timeout={text}"),
    "path": lambda text: transport_from_url(f"sendmail:///{text}"),
    "source of a password": lambda text: Secret(source=text),
    "reply": EnhancedStatus.parse,
    "replies": server_says,
    **{
        f"mail.{name}": setting(name)
        for name in (
            *("url", "host", "port", "tls", "default_sender", "preflight", "commit_timeout"),
            *("username", "password_from", "sendmail_app", "sendmail_template"),
        )
    },
}

#: What is repeated: what some grammar here skips, counts, quotes, decodes or splits at.
FEW = [" ", '"', "=?utf-8?q?a?= "]
MANY = [
    *("a ", ";a=b", "\r\n ", "\t", '\\"', "=?", "=?utf-8?b?YQ==?=", "%41", "a*0=b;", 'a="'),
    *("(", "<a@b.c>,", "@", "a.", "::", "[", "é ", "1.", "{", "/", " \n", "a: b\r\n", "\0"),
]
#: An entry gets one in so many of them: what is behind several entries gets nearly all.
TURNS = 6


def assert_in_proportion(entry, pump):
    """Four times the text is less than six times the work.

    What is folded or encoded from some length on is one jump, which looks like a square until the
    text is four times as long again. A square is more than that there, too.
    """
    function = ENTRIES[entry]
    work(function, pump)  # what is imported or cached at first is not counted
    small, middle = (work(function, pump * (size // len(pump))) for size in (400, 1600))
    if middle > 6 * small + 2000:
        large = work(function, pump * (6400 // len(pump)))
        assert large <= 6 * middle, (entry, pump, small, middle, large)


@pytest.mark.representative(every=3)
@pytest.mark.parametrize(("place", "entry"), list(enumerate(ENTRIES)), ids=ENTRIES)
def test_s2_work_grows_no_faster_than_the_text(entry, place):
    """Stands for any path, from any door, on which each character is looked at many times."""
    assert_in_proportion(entry, FEW[place // 3 % len(FEW)])


@pytest.mark.sweep
@pytest.mark.parametrize(("place", "entry"), list(enumerate(ENTRIES)), ids=ENTRIES)
def test_s2_work_grows_no_faster_than_any_text(entry, place):
    """The same for all that a grammar of ours or of the standard library looks for, by turns."""
    for pump in (FEW + MANY)[place % TURNS :: TURNS]:
        assert_in_proportion(entry, pump)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("end", ["", "x", "é", "\t", "?="])
@pytest.mark.parametrize("pump", [" ", "a ", "a" + " " * 99, "a" * 899 + " " * 99])
def test_s2_a_subject_that_ends_in_blanks_takes_linear_work(pump, end):
    """A hundred kilobytes: it took 31 seconds. The limit is for a hang only."""
    text = pump * (100_000 // len(pump)) + end
    for field in ({"subject": text}, {"extra_headers": {"X-Text": text}}):
        with contextlib.suppress(TxmailError):
            assert email.message_from_bytes(hello(**field).content, policy=email.policy.default)


def test_s2_what_is_folded_is_what_it_was():
    """The other side of it: blanks are kept, between the pieces and at both ends."""
    for text in ("a" + "  b" * 60, "a" + " " * 200 + "b", "x " * 60, " a" * 60, " " * 100):
        content = hello(subject=text).content
        assert email.message_from_bytes(content, policy=email.policy.default)["Subject"] == text
