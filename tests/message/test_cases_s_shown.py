"""Text of users and of the wire in errors: printable, short, and asked of nobody.

And what is taken at the other doors, settings, keys and entries, is of no type that lies.
"""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
from test_cases_s_door import EVIL, Liar, LiarOctets

import txmail
from txmail import Attachment, DummyMailer, Envelope, Mailer, Message, Template
from txmail import exceptions as all_exceptions
from txmail.address import parse_mailbox
from txmail.common.shown import TEXT_LIMIT, echo, name_of, one_line, printable, shown
from txmail.config.settings import read_settings
from txmail.exceptions import FieldError, TxmailError
from txmail.message import to_envelope
from txmail.queue.queue import Queue
from txmail.reply import Reply
from txmail.secret import Secret
from txmail.submission import options
from txmail.testing import ScriptedServer
from txmail.transports.memory import MemoryTransport
from txmail.worker import Route


class Raises:
    """An object whose every text fails: to show it is to call nothing of it."""

    def _fail(self, *arguments):
        raise ZeroDivisionError("asked")

    __repr__ = __str__ = __format__ = __bytes__ = _fail


class Steers:
    """An object that has its texts steer a terminal, and tell a secret."""

    def __repr__(self):
        return "\x1b[31mhunter2" * 100_000

    __str__ = __repr__


class Liars(type):
    """The type of types that have another name than they say."""

    @property
    def __name__(cls):
        return "\x1b[31mhunter2"


TEXTS = {
    "controls": "a\x00\x07\x08\x7fb",
    "an escape sequence": "\x1b[31m\x1b]0;title\x07",
    "C1 controls": "\x9b2J\x85\x90",
    "bidi controls": "a\u202eb\u2066c\u200f",
    "invisible ones": "a\u200bb\ufeffc\u2060\u00ad",
    "lone surrogates": "a\ud800b\udfff",
    "line ends": "a\r\nBcc: eve@example.com\u2028\u2029\x0b",
    "a megabyte": "x" * 1_000_000,
    "a megabyte of escapes": "\x1b" * 1_000_000,
    "a text that lies": Liar(EVIL + "\x1b[31m"),
}
VALUES = {
    "octets": b"a\x1b[31m\xff\r\n",
    "a megabyte of octets": b"\xff" * 1_000_000,
    "octets that lie": LiarOctets(b"\x1b[31m"),
    "an array": bytearray(b"\x1b\xff"),
    "raises": Raises(),
    "steers": Steers(),
    "of a type of a long name": type("\x1b[31m" + "x" * 1_000_000, (), {})(),
    "of a type that lies about its name": Liars("Liars", (), {})(),
    "a list of what raises": [Raises()],
    "a pair of what raises": (Raises(), Raises()),
}
HOSTILE = {**TEXTS, **VALUES}


def given(**more):
    return {"subject": "s", "recipients": ["a@b.c"], "body": "b", "sender": "a@b.c", **more}


def message(**more):
    return Message(**given(**more)).to_envelope()


def attached(**more):
    return message(attachments=[Attachment(**{"filename": "a", "data": b"x", **more})])


def settings(**more):
    named = {f"mail.{name}": value for name, value in more.items()}
    return read_settings({"mail.url": "memory:", "mail.queue_url": "sqlite:////x", **named})


TEMPLATE = Template("{{ a }}", "text {{ a }}", sender="a@b.c")
MEMORY = MemoryTransport()

#: Each place of the public face that takes a text and says what is wrong with it.
DOORS = {
    "subject": lambda v: message(subject=v),
    "body": lambda v: message(body=v),
    "html": lambda v: message(html=v),
    "sender": lambda v: message(sender=v),
    "recipients": lambda v: message(recipients=v),
    "recipient": lambda v: message(recipients=[v]),
    "name of a recipient": lambda v: message(cc=[(v, "a@b.c")]),
    "address of a recipient": lambda v: message(bcc=[("n", v)]),
    "reply_to": lambda v: message(reply_to=v),
    "envelope_sender": lambda v: message(envelope_sender=v),
    "message_id": lambda v: message(message_id=v),
    "list_id": lambda v: message(list_id=v),
    "list_unsubscribe": lambda v: message(list_unsubscribe=[v]),
    "auto_submitted": lambda v: message(auto_submitted=v),
    "date": lambda v: message(date=v),
    "name of a header": lambda v: message(extra_headers=[(v, "x")]),
    "value of a header": lambda v: message(extra_headers={"X-A": v}),
    "calendar": lambda v: message(calendar=v),
    "attachments": lambda v: message(attachments=[v]),
    "filename": lambda v: attached(filename=v),
    "content_type": lambda v: attached(content_type=v),
    "charset": lambda v: (
        attached(content_type=f"text/plain; charset={v}", data="x") if isinstance(v, str) else None
    ),
    "disposition": lambda v: attached(disposition=v),
    "transfer_encoding": lambda v: attached(transfer_encoding=v),
    "content_id": lambda v: attached(content_id=v),
    "data": lambda v: attached(data=v),
    "address": lambda v: parse_mailbox(v),
    "envelope's sender": lambda v: Envelope(v, ["a@b.c"], b""),
    "envelope's recipients": lambda v: Envelope("a@b.c", [v], b""),
    "envelope's content": lambda v: to_envelope(Envelope("a@b.c", ["a@b.c"], v)),
    "message of send": lambda v: to_envelope(v),
    "priority": lambda v: options(priority=v),
    "not_before": lambda v: options(not_before=v),
    "expires": lambda v: options(expires=v),
    "idempotency_key": lambda v: options(idempotency_key=v),
    "delivery": lambda v: Mailer(MEMORY, delivery=v),
    "preflight": lambda v: Mailer(MEMORY, preflight=v),
    "on_unavailable": lambda v: Mailer(MEMORY, on_unavailable=v),
    "on_partial": lambda v: Mailer(MEMORY, on_partial=v),
    "transport": lambda v: Mailer(v),
    "commit_timeout": lambda v: Mailer(MEMORY, commit_timeout=v),
    "on_doubt": lambda v: Queue("sqlite:////x", on_doubt=v),
    "queue's URL": lambda v: Queue(v),
    "URL": lambda v: txmail.transport_from_url(v),
    "option of a URL": lambda v: (
        txmail.transport_from_url(f"smtp://h?{v}=1") if isinstance(v, str) else None
    ),
    "name of a setting": lambda v: (
        settings(**{str.__str__(v): "x"}) if isinstance(v, str) else None
    ),
    "name of a route": lambda v: (
        settings(**{f"route.{str.__str__(v)}.senders": "x"}) if isinstance(v, str) else None
    ),
    "priorities of a route": lambda v: Route.to("r", MEMORY, priorities=[v]),
    "subject of a template": lambda v: Template(v, "x"),
    "filter of a template": lambda v: (
        Template("{{ a|" + str.__str__(v) + " }}", "x") if isinstance(v, str) else None
    ),
    "name of a field": lambda v: (
        TEMPLATE.render({v: object(), "a": 1}, ["a@b.c"])
        if isinstance(v, str)
        else TEMPLATE.render([v], ["a@b.c"])
    ),
    "value of a field": lambda v: TEMPLATE.render({"a": v}, ["a@b.c"]).to_envelope(),
    "recipients of a template": lambda v: TEMPLATE.render({"a": 1}, v).to_envelope(),
    "recipient of a template": lambda v: TEMPLATE.render({"a": 1}, [v]).to_envelope(),
    "recipient of a compiled one": lambda v: TEMPLATE.compile().envelope(v, {"a": 1}),
    "password": lambda v: Secret(v).reveal("password") and None if isinstance(v, str) else None,
    "reply of a dummy": lambda v: DummyMailer().refuse("a@b.c", v) if isinstance(v, str) else None,
}
SETTINGS = sorted(
    {"host", "port", "tls", "ssl", "default_sender", "preflight", "transient", "commit_timeout"}
    | {"delivery", "on_unavailable", "on_partial", "queue_limit", "doubt_retries", "on_doubt"}
    | {"username", "password_from", "cafile", "sendmail_app", "sendmail_template", "queue_path"}
    | {"route.a.senders", "route.a.priorities", "route.a.rate", "route.a.connections"}
)
DOORS |= {f"setting {name}": lambda v, n=name: settings(**{n: v}) for name in SETTINGS}


def assert_clean(error):
    for text in (str(error), str(getattr(error, "field", ""))):
        assert text.isprintable()
        assert len(text) < 1000
        assert "x" * 450 not in text
        assert "hunter2" not in text
        text.encode()


@pytest.mark.parametrize("door", DOORS)
def test_s10_an_error_is_printable_and_short_whatever_was_handed_in(door):
    """Stands for each error that repeats what it is about: nothing of the value is called."""
    for value in HOSTILE.values():
        error = error_of(lambda v=value: DOORS[door](v))
        if error is not None:
            assert_clean(error)
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), str(again), again.field) == (type(error), str(error), error.field)


def error_of(call):
    """The error of bad input that `call` raises; None if it raises none, or one of Python's."""
    try:
        call()
    except FieldError as error:
        return error
    except TypeError as error:
        # An argument that is no text; it names the type only.
        assert "hunter2" not in str(error)  # noqa: PT017
    return None


def test_s10_an_error_of_any_kind_is_printable_and_short():
    """The root of it: whatever text an error is made with, by whomever."""
    found = [kind for kind in vars(all_exceptions).values() if isinstance(kind, type)]
    found = [kind for kind in found if issubclass(kind, TxmailError)]
    assert len(found) > 20
    for kind in found:
        for text in TEXTS.values():
            said = str(kind(str.__str__(text)))
            assert said.isprintable()
            assert len(said) <= TEXT_LIMIT
            assert str(kind(said)) == said
        assert str(kind("tëxt “as it is”")) == "tëxt “as it is”"


def test_s10_what_is_left_of_a_long_text_are_both_its_ends():
    """The path in front and the advice behind are what a person needs."""
    text = "/a/path: " + "\x1b" * 50_000 + ": say tls=required"
    said = shown(text)
    assert said.startswith("/a/path: \\x1b")
    assert said.endswith("\\x1b: say tls=required")
    assert len(said) == TEXT_LIMIT
    assert shown("x" * TEXT_LIMIT) == "x" * TEXT_LIMIT
    assert one_line("a\n b\u2028c\td\x1b") == "a b c d\\x1b"
    assert printable("é ü 漢") == "é ü 漢"


@pytest.mark.parametrize("kind", VALUES)
def test_s10_nothing_of_a_value_is_called_to_show_it(kind):
    """The same for `echo` by itself, and for what is no text at all."""
    for said in (echo(VALUES[kind]), shown(VALUES[kind]), name_of(type(VALUES[kind]))):
        assert said.isascii()
        assert said.isprintable()
        assert len(said) < 300


@pytest.mark.parametrize("kind", TEXTS)
def test_s10_a_text_of_the_wire_is_printable_in_errors(kind):
    """The same for what a server says, in a reply and in place of one."""
    said = str(Reply(550, (str.__str__(TEXTS[kind]),)))
    assert said.isprintable()
    octets = str.__str__(TEXTS[kind])[:400].encode("utf-8", "replace")
    octets = octets.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"
    for greeting in (b"554 " + octets, b"554-" + octets + b"554 x\r\n", octets):
        with ScriptedServer() as server:
            server.on("connect", greeting)
            transport = txmail.transport_from_url(server.url)
            with pytest.raises(TxmailError) as caught:
                transport.open(timeout=5)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) <= TEXT_LIMIT


#: Where a `repr` may be: of values whose types are known, and where it is no part of an error.
REPRS = {
    ("address.py", "ascii(str(error))"): "what idna says of a label that was bounded",
    (
        "compiled.py",
        "{self.template!r}",
    ): "a Template, which shows a part of its subject",
    ("impossible.py", "{row.priority!r}"): "what a driver has read of a column, cut",
    ("impossible.py", "{row.state!r}"): "the same",
    ("impossible.py", "{value!r}"): "the same",
    ("scenario.py", "ascii(str(error))"): "an error of the demo's own",
    ("secret.py", "ascii(raw)"): "a form of a secret that is searched for",
    ("secret.py", "ascii(secret)"): "the same",
    ("shown.py", "ascii(bytes(octets.__getitem__(value, few)))"): "this is the place for it",
    ("shown.py", "ascii(text[few])"): "the same",
}


def test_s10_no_text_is_made_of_a_value_by_its_repr():
    """Stands for each new error that would show a value in another way than `echo`."""
    found = set()
    for path in sorted(Path(txmail.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FormattedValue) and node.conversion in (ord("r"), ord("a")):
                found.add((path.name, f"{{{ast.unparse(node.value)}!{chr(node.conversion)}}}"))
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("repr", "ascii"):
                found.add((path.name, ast.unparse(node)))
    assert found == set(REPRS)


def route(**more):
    return settings(**{f"route.a.{name}": value for name, value in more.items()}).routes[0]


#: Words of settings and arguments, each with what it is in a type that lies about it.
WORDS = {
    "delivery": ("queue", lambda v: settings(delivery=v).delivery),
    "preflight": ("always", lambda v: settings(preflight=v).preflight),
    "on_doubt": ("hold", lambda v: settings(on_doubt=v).queue.on_doubt),
    "default_sender": ("me@x.y", lambda v: settings(default_sender=v).default_sender),
    "idempotency_key": ("order 17", lambda v: options(idempotency_key=v).idempotency_key),
    "password": ("hunter2", lambda v: Secret(v).reveal("x")),
    "folder": ("mail", lambda v: settings(top_level_directory=v).top_level_directory),
    "name of a route": ("news", lambda v: Route.to(v, MEMORY).name),
    "domain of a route": ("x.y", lambda v: next(iter(Route.to("n", MEMORY, domains=[v]).domains))),
    "sender of a route": ("x.y", lambda v: next(iter(route(senders=[v]).senders))),
    "name of an entry": ("Bob", lambda v: parse_mailbox((v, "a@b.c")).display_name),
    "address of an entry": ("a@b.c", lambda v: parse_mailbox(("n", v)).address.text),
    "entry": ("a@b.c", lambda v: parse_mailbox(v).address.text),
}


@pytest.mark.parametrize("name", WORDS)
def test_s10_a_setting_a_key_and_an_entry_are_taken_for_what_they_are(name):
    """The same at the other doors: a plain text comes out, and it is the one that was checked."""
    word, door = WORDS[name]
    found = door(Liar(word))
    assert type(found) is str
    assert found == word
    for evil in (EVIL, "x\r\ny", "a\0b", "\ud800", "x" * 500 + "\n"):
        plain, lying = (error_of(lambda v=v: door(v)) for v in (evil, Liar(evil)))
        assert type(plain) is type(lying)
        assert str(plain) == str(lying)


class LiarPair(tuple):
    """A pair that says it is another."""

    __slots__ = ()

    def __getitem__(self, index):
        return EVIL

    def __iter__(self):
        return iter(("ok", "a@b.c"))

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    "entry", [("n\r\nBcc: eve@example.com", "a@b.c"), ("n", "a@b.c\r\nx"), ("a",)]
)
def test_s10_the_recipients_of_a_template_are_what_they_are(entry):
    """Each way to give a template its recipients: pairs and texts that lie, in lists that do."""
    compiled = TEMPLATE.compile()
    for lie in (LiarPair(entry), tuple(map(Liar, entry)), LiarPair(map(Liar, entry))):
        for make in (
            lambda v: TEMPLATE.render({"a": 1}, [v]).to_envelope(),
            lambda v: compiled.envelope(v, {"a": 1}),
            lambda v: Message(**given()).to_envelope(recipients=[v]),
        ):
            with pytest.raises(FieldError):
                make(lie)
