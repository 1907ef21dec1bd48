"""Whatever happens, the password is in nothing that a person, a log or a dump could show."""

from __future__ import annotations

import base64
import logging
import pickle
import ssl
import traceback
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
import transaction
from commits import note
from secrecy import attributes, dumped, forms, has, leaks, new_objects_only
from smtp_helpers import RawServer, greeted
from thin import forget_the_collected

from txmail import mailer_from_settings, transport_from_url
from txmail.exceptions import ConfigurationError, DeliveryError, TxmailError
from txmail.secret import Censor, Secret
from txmail.smtp.auth import MECHANISMS
from txmail.testing import CLOSE, HANG, RESET, ScriptedServer, then

USER = "ann"
#: It has what is encoded differently in base64, in a URL, and in the base64 of URLs.
SECRET = "s3cret?>pass/word~\u00ffend"

#: Everything a server could say about it, without a line end.
_PLAIN = base64.b64encode(f"\0{USER}\0{SECRET}".encode()).decode()
SPILL = " ".join([SECRET, *sorted(forms(SECRET) | {_PLAIN})])

UNBOUND = tuple(name for name in MECHANISMS if not name.endswith("-PLUS"))


@pytest.fixture(scope="module")
def contexts(authority):
    """For a server, with channel binding and without."""
    bound = authority.server()
    bound.maximum_version = ssl.TLSVersion.TLSv1_2
    return {True: bound, False: authority.server()}


@pytest.fixture(scope="module", autouse=True)
def _all_objects():
    yield
    forget_the_collected()


@pytest.fixture(autouse=True)
def _objects_of_this_test(_all_objects):
    with new_objects_only():
        yield


@pytest.fixture
def records():
    """What all loggers have said, at any level."""
    kept = []

    class Keeping(logging.Handler):
        def emit(self, record):
            self.format(record)
            kept.append(record)

    handler, root = Keeping(1), logging.getLogger()
    loggers = [logging.getLogger(name) for name in ("txmail", "txmail.smtp", "txn", "")]
    before = [logger.level for logger in loggers]
    root.addHandler(handler)
    for logger in loggers:
        logger.setLevel(1)
    yield kept
    root.removeHandler(handler)
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def assert_unlogged(records, *secrets):
    for record in records:
        shown = [record.getMessage(), record.exc_text or "", repr(vars(record)), repr(record.args)]
        assert not [text for text in shown if has(text, *secrets)]


def assert_nothing_shows(error, mailer, records, *secrets):
    """The test of everything, after a commit or an error."""
    secrets = secrets or (SECRET,)
    transport = mailer._direct.transport
    shown = [
        *(repr(mailer), repr(vars(mailer)), repr(mailer.last_outcomes), repr(transport)),
        *(repr(vars(transport)), repr(transport.options), repr(attributes(transport.options))),
        *(transport.name, transport.options.account),
        *(repr(o.reply) + str(o.reply) + str(o) for o in mailer.last_outcomes),
    ]
    for session in transport._pool._idle:
        connection = session.connection
        for thing in (session, connection, connection.protocol):
            shown += [repr(thing), repr(attributes(thing))]
    assert not [text for text in shown if has(text, *secrets)]
    pickled = [pickle.dumps(thing) for thing in (transport, mailer, mailer.last_outcomes)]
    assert not [octets for octets in pickled if has(octets, *secrets)]
    assert not dumped(*secrets)
    if error is not None:
        assert not leaks(error, *secrets)
        assert not has(repr(getattr(error, "outcomes", "")), *secrets)
    assert_unlogged(records, *secrets)


def commit(tm, mailer):
    """Two transactions with mail; the first error."""
    error = None
    for name in ("one", "two"):
        mailer.send(note(name))
        try:
            tm.commit()
        except TxmailError as raised:
            tm.abort()
            error = error or raised
    return error


def raw_errors(transport, timeout):
    """What is raised below a commit, which raises an error of its own."""
    envelope = note("three")
    try:
        session = transport.open(timeout=timeout, fresh=True)
    except TxmailError as error:
        return [error]
    try:
        session.preflight([envelope], timeout=timeout)
        list(session.send([envelope], timeout=timeout))
    except TxmailError as error:
        return [error]
    finally:
        session.close()
    return []


@dataclass
class Case:
    """A server, what it is told to do, and how we get to it."""

    mechanism: str = "PLAIN"
    password: str = SECRET
    trusted: bool = True
    rules: list[tuple[str, Any]] = field(default_factory=list)
    succeeds: bool = False
    timeout: float = 20.0


SPILLED = SPILL.encode()
CASES = {
    **{f"{name} succeeds": Case(name, succeeds=True) for name in MECHANISMS},
    **{f"{name} is refused": Case(name, password="wrong") for name in MECHANISMS},
    "the certificate does not verify": Case(trusted=False),
    "STARTTLS is refused": Case(rules=[("STARTTLS", "454 4.7.0 not now")]),
    "the handshake is garbage": Case(rules=[("STARTTLS", then(b"220 go\r\n", b"no TLS"))]),
    "the handshake ends": Case(rules=[("STARTTLS", then(b"220 go\r\n", CLOSE))]),
}
for name in UNBOUND:
    CASES |= {
        f"{name} is refused with an echo": Case(name, rules=[("AUTH", f"535 5.7.8 {SPILL}")]),
        f"{name} is deferred with an echo": Case(name, rules=[("AUTH", f"454 4.7.0 {SPILL}")]),
        f"{name} hangs": Case(name, rules=[("AUTH", HANG)], timeout=0.3),
        f"{name} ends": Case(name, rules=[("AUTH", CLOSE)]),
        f"{name} is reset": Case(name, rules=[("AUTH", RESET)]),
        f"{name} is half answered with an echo": Case(
            name, rules=[("AUTH", then(b"535 " + SPILLED, CLOSE))]
        ),
        f"{name} is answered with nonsense": Case(name, rules=[("AUTH", SPILLED + b"\r\n")]),
        f"{name} is answered with too long a line": Case(
            name, rules=[("AUTH", b"235 " + SPILLED * 50 + b"\r\n")]
        ),
        f"{name} is answered with another code": Case(name, rules=[("AUTH", f"250 {SPILL}")]),
        f"{name} is answered with codes that differ": Case(
            name, rules=[("AUTH", b"235-" + SPILLED + b"\r\n250 " + SPILLED + b"\r\n")]
        ),
        f"{name} is answered twice": Case(
            name, rules=[("AUTH", b"235 ok\r\n250 " + SPILLED + b"\r\n")]
        ),
        f"{name} is challenged with an echo": Case(
            name, rules=[("AUTH", f"334 {base64.b64encode(SECRET.encode()).decode()}")]
        ),
        f"{name} is challenged with the plain echo": Case(
            name, rules=[("AUTH", b"334 " + SPILLED + b"\r\n")]
        ),
        f"{name} succeeds with an echo": Case(
            name, rules=[("AUTH", f"235 2.7.0 {SPILL}")], succeeds=True
        ),
    }
# The first three have heard of it on another connection.
for verb in ("connect", "EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", ".", "RSET"):
    CASES |= {
        f"{verb} echoes and {what}": Case(
            # RSET follows a refusal; what follows the last reply changes nothing any more.
            rules=[(verb, action)] + [("RCPT", "550 5.1.1 no")] * (verb == "RSET"),
        )
        for what, action in {
            "refuses": f"550 5.7.1 {SPILL}",
            "defers": f"451 4.7.1 {SPILL}",
            "says bye": then(f"421 4.3.0 {SPILL}", CLOSE),
            "makes no sense": SPILLED + b"\r\n",
            "ends no line": then(b"250 " + SPILLED, CLOSE),
            "has two codes": b"250-" + SPILLED + b"\r\n550 " + SPILLED + b"\r\n",
            "has bare line ends": b"250 "
            + SPILLED
            + b"\n250 "
            + SPILLED
            + b"\r"
            + SPILLED
            + b"\r\n",
            "is intermediate": b"334 " + SPILLED + b"\r\n",
            "says more than it was asked": b"250 ok\r\n250 " + SPILLED + b"\r\n",
        }.items()
    }


@pytest.mark.representative(every=24)
@pytest.mark.parametrize("case", CASES)
def test_nothing_shows_the_password(tm, authority, contexts, records, case):
    case = CASES[case]
    with ScriptedServer(
        tls_context=contexts["PLUS" in case.mechanism],
        credentials={USER: case.password},
        mechanisms=(case.mechanism,),
        login_required=True,
    ) as server:
        for verb, action in case.rules:
            server.on(verb, action, times=None)
        trust = f"&cafile={authority.cafile}" if case.trusted else ""
        mailer = mailer_from_settings(
            {
                "mail.url": f"smtp://{USER}:{quote(SECRET, safe='')}@127.0.0.1:{server.port}"
                f"?tls=required&auth={case.mechanism}{trust}",
                "mail.commit_timeout": case.timeout,
            }
        ).bind(transaction_manager=tm)
        error = commit(tm, mailer)
        unbound = mailer.bind(transaction_manager=transaction.manager)
        assert (error is None) is case.succeeds
        # Still there when all objects are searched, and with them what their frames hold.
        errors = raw_errors(mailer._direct.transport, case.timeout)
        assert_nothing_shows(error, unbound, records)
        assert not [leak for raw in errors for leak in leaks(raw, SECRET)]
        heard = not any(verb == "connect" for verb, _ in case.rules)
        assert not heard or any(record.name == "txmail.smtp" for record in records)
        mailer.close()


def echoing(mechanism, refuse):
    """A server that repeats all that was said in AUTH, and the password, in each later reply."""

    def serve(connected, stopping):
        reader = greeted(connected, f"250-mx\r\n250 AUTH {mechanism}\r\n".encode())
        line = reader.readline().split()
        said = line[2:]
        prompts = {"LOGIN": [b"VXNlcjo=", b"UGFzczo="], "CRAM-MD5": [b"PDFAeD4="]}
        for prompt in prompts.get(mechanism, []):
            connected.sendall(b"334 " + prompt + b"\r\n")
            said.append(reader.readline().strip())
        exchanges.append([word.decode() for word in said[-1:]])
        everything = b" ".join(said) + b" " + SPILLED
        connected.sendall(b"235-" + everything + b"\r\n235 " + everything + b"\r\n")
        while line := reader.readline():
            code = {b"DATA": b"354", b"QUIT": b"221"}.get(line.split()[0], b"250")
            if line.startswith(refuse):
                code = b"550"
            connected.sendall(
                code + b"-" + everything + b"\r\n" + code + b" " + everything + b"\r\n"
            )
            if code == b"354":
                while reader.readline() != b".\r\n":
                    pass
                connected.sendall(b"250 2.0.0 " + everything + b"\r\n")

    exchanges = []
    return RawServer(serve), exchanges


@pytest.mark.representative(every=12)
@pytest.mark.parametrize("refuse", [b"nothing", b"RCPT", b"DATA"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"])
def test_a_server_that_repeats_the_whole_exchange_gets_it_nowhere(tm, records, mechanism, refuse):
    raw, exchanges = echoing(mechanism, refuse)
    with raw as server:
        port = server.address[1]
        mailer = mailer_from_settings(
            {
                "mail.url": f"smtp://127.0.0.1:{port}?auth_in_clear=yes&auth={mechanism}",
                "mail.username": USER,
                "mail.password": SECRET,
            }
        ).bind(transaction_manager=tm)
        error = commit(tm, mailer)
        assert (error is None) is (refuse == b"nothing")
        assert error is None or isinstance(error, DeliveryError)
        replies = [str(o.reply) for o in mailer.last_outcomes if o.reply]
        assert any("********" in reply for reply in replies)
        unbound = mailer.bind(transaction_manager=transaction.manager)
        assert_nothing_shows(error, unbound, records, SECRET, *exchanges[0])
        mailer.close()


# What a person has written wrong


@pytest.mark.parametrize(
    "url",
    [
        "smtp://ann:{}@mx.example.com:99999",
        "smtp://ann:{}@mx.example.com:port",
        "smtp://ann:{}@mx.example.com?tls=off",
        "smtp://ann:{}@mx.example.com?tls=maybe",
        "smtp://ann:{}@mx.example.com?auth=KERBEROS",
        "smtp://ann:{}@mx.example.com?cafile=/does/not/exist",
        "smtp://ann:{}@mx.example.com?nonsense=1",
        "smtp://ann:{}@mx.example.com/path",
        "smtp://ann:{}@mx.example.com#fragment",
        "smtp://ann:{}@mx..example",
        "smtp://ann:{}@",
        "smtp://ann:{}@[::1",
        "smtp://ann:{}@mx.example.com\0",
        "smtp://ann:{}@localhost",
        "smtp://{}@mx.example.com",
        "smtp://:{}@mx.example.com",
        "smtp://ann:{}",
        "smtp:ann:{}@mx.example.com",
        "ann:{}@mx.example.com",
        "http://ann:{}@mx.example.com",
        "memory:{}",
        "{}",
        "{}://mx.example.com",
        "smtp://mx.example.com?password={}",
        "smtp://mx.example.com?password_from={}",
        "smtp://mx.example.com?auth={}",
        "smtp://mx.example.com?tls={}",
        "smtp://mx.example.com?timeout={}",
        "smtp://mx.example.com?cafile={}",
        "smtp://mx.example.com?{}=1",
        "smtp://mx.example.com?local_hostname={}_",
    ],
)
@pytest.mark.parametrize("quoted", [True, False])
def test_no_error_about_a_url_shows_it(url, quoted, records):
    url = url.format(quote(SECRET, safe="") if quoted else SECRET)
    for made in (
        lambda: transport_from_url(url),
        lambda: mailer_from_settings({"mail.url": url}),
        lambda: mailer_from_settings({"mail.url": ["memory:", url]}),
    ):
        with pytest.raises(ConfigurationError) as raised:
            made()
        assert not leaks(raised.value, SECRET)
    assert_unlogged(records, SECRET)


@pytest.mark.parametrize(
    "settings",
    [
        {"password": SECRET},
        {"password": SECRET.encode()},
        {"password": [SECRET]},
        {"password": {"password": SECRET}},
        {"password": SECRET, "username": "ann", "password_from": "env:X"},
        {"username": SECRET},
        {"username": SECRET.encode()},
        {"password_from": SECRET, "username": "ann"},
        {"host": SECRET},
        {"host": f"ann:{SECRET}@mx.example.com"},
        {"host": SECRET.encode()},
        {"port": SECRET},
        {"tls": SECRET},
        {"ssl": SECRET},
        {"debug": SECRET},
        {"default_sender": SECRET},
        {"preflight": SECRET},
        {"transient": SECRET},
        {"commit_timeout": SECRET},
        {"delivery": SECRET},
        {"queue_url": f"mysql://ann:{SECRET}@db/mail"},
        {"cafile": SECRET, "host": "mx.example.com"},
        {"certfile": SECRET, "host": "mx.example.com"},
        {"keyfile": SECRET, "host": "mx.example.com"},
        # right where it is, and something else is wrong
        *(
            {"username": "ann", "password": SECRET, "host": "mx.example.com", **wrong}
            for wrong in (
                {"port": "x"},
                {"tls": "no"},
                {"nonsense": "x"},
                {"cafile": "/does/not/exist"},
                {"commit_timeout": "0"},
                {"default_sender": "nobody"},
                {"host": "mx..example"},
                {"host": "localhost"},
            )
        ),
    ],
)
def test_no_error_about_a_setting_shows_it(settings, records):
    with pytest.raises(ConfigurationError) as raised:
        mailer_from_settings({f"mail.{name}": value for name, value in settings.items()})
    assert not leaks(raised.value, SECRET)
    assert_unlogged(records, SECRET)


def spilling_source():
    password = SECRET
    raise RuntimeError(f"{password} is not for you")


@pytest.mark.parametrize(
    "given",
    [
        lambda: Secret(source=f"{__name__}:spilling_source"),
        lambda: Secret(SECRET + "\n"),
        lambda: Secret(SECRET + "\udcff"),
        lambda: Secret(SECRET + "\0"),
        lambda: pickle.loads(pickle.dumps(Secret(SECRET))),
    ],
)
def test_no_error_about_a_secret_shows_it(server, tm, given, records):
    mailer = mailer_from_settings(
        {
            "mail.url": f"smtp://127.0.0.1:{server.port}?auth_in_clear=yes",
            "mail.username": "ann",
            "mail.password": given(),
        }
    ).bind(transaction_manager=tm)
    server.on("EHLO", "250-mx\nAUTH PLAIN", times=None)
    mailer.send(note("one"))
    with pytest.raises(ConfigurationError, match=r"ann@127\.0\.0\.1: ") as raised:
        tm.commit()
    tm.abort()
    assert not leaks(raised.value, SECRET)
    assert_unlogged(records, SECRET)
    assert not any("AUTH" in line for line in server.commands)


# That these tests would find it


def test_the_search_finds_a_secret_in_each_form():
    for form in forms(SECRET):
        assert has(f"... {form} ...", SECRET)
        assert has(f"... {form} ...".encode(), SECRET)
    assert not has("nothing of it: s3cret", SECRET)


def test_the_search_finds_a_secret_in_a_chain_a_note_a_variable_and_an_attribute():
    def fails(kind):
        try:
            raise kind(SECRET)
        except kind as error:
            raise TxmailError("harmless") from error

    with pytest.raises(TxmailError) as raised:
        fails(ValueError)
    assert leaks(raised.value, SECRET)
    noted = TxmailError("harmless")
    noted.add_note(SECRET)
    assert leaks(noted, SECRET)
    options = transport_from_url("smtp://ann:x@mx.example.com").options
    object.__setattr__(options, "local_hostname", SECRET)
    assert "Options.local_hostname" in dumped(SECRET)
    namespace = {"__name__": "txmail.fake", "TxmailError": TxmailError, "SECRET": SECRET}
    exec("def fails(password):\n    raise TxmailError('harmless')", namespace)
    with pytest.raises(TxmailError) as raised:
        namespace["fails"](SECRET)
    assert leaks(raised.value, SECRET)
    shown = traceback.TracebackException.from_exception(raised.value, capture_locals=True)
    assert has("".join(shown.format()), SECRET)


def test_a_censor_finds_what_has_the_secret_in_the_middle():
    censor = Censor()
    assert not censor.active
    censor.hide(SECRET)
    assert censor.active
    for before in ("", "a", "ab", "abc"):
        for after in ("", "x", "xy", "xyz"):
            octets = (before + SECRET + after).encode()
            for encoded in (base64.b64encode(octets), base64.urlsafe_b64encode(octets)):
                clean = censor.clean(b"<" + encoded + b">")
                assert b"********" in clean
                assert not has(clean, SECRET)
                # What is left is of its neighbours, and a bit of a character or two.
                assert len(clean.strip(b"<>").replace(b"*", b"")) <= 12
            assert not has(censor.clean(octets), SECRET)
    assert censor.clean(b"250 2.0.0 Ok: queued") == b"250 2.0.0 Ok: queued"


def test_a_secret_too_short_to_be_one_does_not_blank_everything():
    censor = Censor()
    censor.hide("2")
    assert censor.clean(b"2.0.0 Ok 2") == b"2.0.0 Ok 2"
    assert not vars_of(censor)


def vars_of(thing):
    return [value for value in attributes(thing).values() if isinstance(value, (str, bytes, list))]
