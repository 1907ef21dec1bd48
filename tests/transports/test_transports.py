"""Every transport keeps the same contract; their URLs say exactly what is meant."""

from __future__ import annotations

import copy
import pickle
import ssl

import pytest
from secrecy import leaks
from smtp_helpers import make_envelope, statuses
from zope.interface.verify import verifyObject

from txmail import transport_from_url
from txmail.envelope import Envelope
from txmail.exceptions import ConfigurationError
from txmail.interfaces import ISession, ITransport
from txmail.reply import Reply
from txmail.testing import ScriptedServer
from txmail.transports.memory import MemoryTransport
from txmail.transports.smtp import SmtpTransport
from txmail.transports.url import from_url, is_loopback

ONE = make_envelope(1, ["b@example.com"])
PAIR = make_envelope(2, ["b@example.com", "c@example.com"])
LAST = make_envelope(3, ["d@example.com"])


# The contract


class Smtp:
    """SMTP with a server that can be told to refuse."""

    def __init__(self, server, query=""):
        self.server = server
        self.transport = from_url(server.url + query)

    def refuse(self, recipient, reply):
        self.server.refuse(recipient, str(reply))

    @property
    def kept(self):
        """Recipients and content of every message that arrived."""
        return [(m.sender, m.recipients, m.content) for m in self.server.messages]


class Memory:
    """``memory:``."""

    def __init__(self):
        self.transport = from_url("memory:")

    def refuse(self, recipient, reply):
        self.transport.refuse(recipient, reply)

    @property
    def kept(self):
        return [(e.sender, e.recipients, e.content) for e in self.transport.envelopes]


@pytest.fixture(params=["smtp", "smtp, lockstep", "memory"])
def place(request):
    if request.param == "memory":
        yield Memory()
        return
    with ScriptedServer() as server:
        place = Smtp(server, "?pipelining=no" if "lockstep" in request.param else "")
        yield place
        place.transport.close()


@pytest.fixture
def session(place):
    session = place.transport.open()
    yield session
    session.close()


def as_kept(*envelopes):
    return [(e.sender, e.recipients, e.content) for e in envelopes]


def test_the_interfaces_are_provided(place, session):
    assert verifyObject(ITransport, place.transport)
    assert verifyObject(ISession, session)
    assert place.transport.asks_server
    assert place.transport.name == session.host


def test_what_is_sent_arrives_in_order_with_an_outcome_for_each_recipient(place, session):
    outcomes = list(session.send([ONE, PAIR, LAST]))
    assert statuses(outcomes) == ["accepted"] * 4
    assert [o.recipient[0] for o in outcomes] == ["b", "b", "c", "d"]
    assert [o.message_id for o in outcomes] == [
        *("<1@example.com>", "<2@example.com>", "<2@example.com>", "<3@example.com>")
    ]
    assert all(o.reply.positive and o.action == "done" for o in outcomes)
    assert session.unsettled() == []
    assert place.kept == as_kept(ONE, PAIR, LAST)


@pytest.mark.parametrize("strict", [True, False])
def test_what_passed_the_preflight_is_sent(place, session, strict):
    assert session.preflight([ONE, PAIR]) == []
    assert place.kept == []
    assert statuses(session.send([ONE, PAIR], strict=strict)) == ["accepted"] * 3
    assert place.kept == as_kept(ONE, PAIR)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply(550, ("5.1.1 no such user",)), "failed"),
        (Reply(450, ("4.2.0 greylisted",)), "deferred"),
    ],
)
def test_a_preflight_finds_who_is_refused_and_nothing_is_sent(place, session, reply, status):
    place.refuse("c@example.com", reply)
    (refusal,) = session.preflight([ONE, PAIR, LAST])
    assert (refusal.recipient, refusal.status, refusal.scope) == (
        *("c@example.com", status, "recipient"),
    )
    assert refusal.reply == reply
    assert refusal.message_id == "<2@example.com>"
    assert place.kept == []


def test_strictly_a_refused_recipient_ends_sending_before_its_message(place, session):
    place.refuse("c@example.com", Reply(550, ("5.1.1 no such user",)))
    outcomes = list(session.send([ONE, PAIR, LAST], strict=True))
    assert statuses(outcomes) == ["accepted", "unsent", "failed", "unsent"]
    assert place.kept == as_kept(ONE)


def test_otherwise_a_refused_recipient_concerns_nobody_else(place, session):
    place.refuse("c@example.com", Reply(550, ("5.1.1 no such user",)))
    place.refuse("d@example.com", Reply(450, ("4.2.0 later",)))
    outcomes = list(session.send([ONE, PAIR, LAST, ONE]))
    assert statuses(outcomes) == ["accepted", "accepted", "failed", "deferred", "accepted"]
    only_b = Envelope(PAIR.sender, ["b@example.com"], PAIR.content)
    assert place.kept == as_kept(ONE, only_b, ONE)


def test_a_session_can_be_used_again_after_a_refusal(place, session):
    place.refuse("c@example.com", Reply(550, ("5.1.1 no such user",)))
    assert "failed" in statuses(session.send([PAIR], strict=True))
    assert statuses(session.send([ONE], strict=True)) == ["accepted"]
    assert place.kept == as_kept(ONE)


def test_a_session_given_back_can_be_opened_again(place):
    for _ in range(3):
        session = place.transport.open(timeout=10, wait=False)
        session.preflight([PAIR])
        session.close(dirty=True)
        session = place.transport.open(fresh=True)
        assert statuses(session.send([ONE])) == ["accepted"]
        session.close()
    assert place.kept == as_kept(ONE, ONE, ONE)


def test_sending_nothing_is_nothing(place, session):
    assert session.preflight([]) == []
    assert list(session.send([])) == []
    assert not session.restartable
    assert place.kept == []


def test_outcomes_that_were_not_taken_are_unsettled(place, session):
    sending = session.send([ONE, PAIR], strict=True)
    first = next(sending)
    sending.close()
    rest = session.unsettled()
    assert [first, *rest][-3:] == [*rest][-3:]  # the last one handed out may repeat
    assert len(rest) == 3
    arrived = [content for _, _, content in place.kept]
    for outcome in rest:
        envelope = ONE if outcome.message_id == ONE.message_id else PAIR
        assert (outcome.status == "accepted") is (envelope.content in arrived)


# memory:


def test_everybody_can_be_refused_and_forgiven():
    transport = MemoryTransport()
    transport.refuse("*", Reply(451, ("later",)))
    transport.refuse("c@example.com", Reply(550, ("no",)))
    assert statuses(transport.open().preflight([PAIR])) == ["deferred", "failed"]
    transport.accept_all()
    assert transport.open().preflight([PAIR]) == []


@pytest.mark.parametrize("code", [200, 354])
def test_only_refusals_refuse(code):
    with pytest.raises(ValueError, match="not a refusal"):
        MemoryTransport().refuse("*", Reply(code))


# URLs


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("smtp://localhost", "localhost", 25),
        ("SMTP://LOCALHOST:2525", "localhost", 2525),
        ("smtp://localhost:2525/", "localhost", 2525),
        ("smtp://127.0.0.1:2525", "127.0.0.1", 2525),
        ("smtp://127.200.0.1", "127.200.0.1", 25),
        ("smtp://[::1]", "::1", 25),
        ("smtp://[::1]:2525", "::1", 2525),
        ("smtp://[fe80::1%25eth0]:25?tls=off", "fe80::1%eth0", 25),
        ("smtp://mx.example.com?tls=off", "mx.example.com", 25),
        ("smtp://b\u00fccher.example?tls=off", "xn--bcher-kva.example", 25),
        ("smtp://b%C3%BCcher.example?tls=off", "xn--bcher-kva.example", 25),
        ("smtp://xn--bcher-kva.example?tls=opportunistic", "xn--bcher-kva.example", 25),
        ("smtp://192.0.2.1?tls=opportunistic", "192.0.2.1", 25),
    ],
)
def test_host_and_port(url, host, port):
    options = from_url(url).options
    assert (options.host, options.port) == (host, port)


def test_the_defaults():
    options = from_url("smtp://localhost").options
    assert options.timeout == 60
    assert options.pipelining
    assert options.tls == "off"
    assert (options.user, options.password, options.auth) == ("", None, None)
    assert not options.auth_in_clear
    assert options.local_hostname is None


@pytest.mark.parametrize(
    ("url", "tls", "port"),
    [
        ("smtp://localhost", "off", 25),
        ("smtp://127.0.0.1", "off", 25),
        ("smtp://[::1]", "off", 25),
        ("smtp://localhost?tls=required", "required", 25),
        ("smtp://localhost?tls=implicit", "implicit", 25),
        ("smtp://mx.example.com", "required", 25),
        ("smtp://mx.example.com:587", "required", 587),
        ("smtp://mx.example.com?tls=opportunistic", "opportunistic", 25),
        ("smtp://mx.example.com?tls=off", "off", 25),
        ("smtp://192.0.2.1", "required", 25),
        ("smtp://0.0.0.0", "required", 25),
        ("smtp://[::]", "required", 25),
        ("smtp://127.1", "required", 25),
        ("smtp://localhost.example.com", "required", 25),
        ("smtp://[::ffff:192.0.2.1]", "required", 25),
        ("smtps://localhost", "implicit", 465),
        ("smtps://mx.example.com:4650?tls=implicit", "implicit", 4650),
    ],
)
def test_tls_is_required_unless_the_host_is_loopback_or_somebody_says_otherwise(url, tls, port):
    options = from_url(url).options
    assert (options.tls, options.port) == (tls, port)
    context = from_url(url)._context()
    assert (context is None) is (tls == "off")
    if context is not None:
        verified = tls != "opportunistic"
        assert context.check_hostname is verified
        assert (context.verify_mode is ssl.CERT_REQUIRED) is verified
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_all_options():
    transport = from_url(
        "smtp://mx.example.com:2525?tls=opportunistic&timeout=2.5&pool=7"
        "&local_hostname=b\u00fccher.example&pipelining=no&window=1&connections=1&chunking=no"
    )
    options = transport.options
    assert options.tls == "opportunistic"
    assert options.timeout == 2.5
    assert options.local_hostname == "xn--bcher-kva.example"
    assert not options.pipelining
    assert transport._size == 7


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("smtp://localhost", "smtp://localhost:25"),
        ("smtp://[::1]:2525", "smtp://[::1]:2525"),
        ("memory:", "memory:"),
    ],
)
def test_a_name_is_printable(url, name):
    transport = transport_from_url(url)
    assert transport.name == name
    assert name in repr(transport) or url == "memory:"


LOCAL = "smtp://localhost?"


@pytest.mark.parametrize(
    ("url", "field"),
    [
        # what it is about
        (None, "url"),
        (b"smtp://localhost", "url"),
        ("", "url"),
        ("localhost", "url"),
        ("localhost:25", "url"),
        ("http://localhost", "url"),
        ("smtps://localhost?tls=required", "url option tls"),
        ("smtps://localhost?tls=off", "url option tls"),
        ("memory:x", "url"),
        ("memory://", "url"),
        ("memory:?x=1", "url"),
        ("smtp:", "url"),
        ("smtp://", "url"),
        ("smtp:localhost", "url"),
        ("smtp:///localhost", "url"),
        ("smtp://:25", "url"),
        ("smtp://localhost/path", "url"),
        ("smtp://localhost#fragment", "url"),
        # blanks and controls, which urlsplit would drop
        (" smtp://localhost", "url"),
        ("smtp://local\nhost", "url"),
        ("smtp://local\thost", "url"),
        ("smtp://localhost\r\n", "url"),
        ("smtp://local host", "url"),
        ("smtp://localhost\x00", "url"),
        ("smtp://local%0Ahost", "url"),
        ("smtp://localhost%00", "url"),
        # hosts
        ("smtp://-a.example?tls=off", "url"),
        ("smtp://a-.example?tls=off", "url"),
        ("smtp://a.example..?tls=off", "url"),
        ("smtp://.?tls=off", "url"),
        ("smtp://a..example?tls=off", "url"),
        ("smtp://\u2488.example?tls=off", "url"),
        ("smtp://[localhost]", "url"),
        ("smtp://[127.0.0.1]", "url"),
        ("smtp://%5B127.0.0.1%5D?tls=off", "url"),
        ("smtp://[::1", "url"),
        ("smtp://[::1%25e/th]", "url"),
        ("smtp://[fe80::1%25a%0Ab]?tls=off", "url"),
        ("smtp://::1", "url"),
        # ports
        ("smtp://localhost:0", "url"),
        ("smtp://localhost:65536", "url"),
        ("smtp://localhost:-1", "url"),
        ("smtp://localhost:smtp", "url"),
        ("smtp://localhost:25:25", "url"),
        # options
        (LOCAL + "tsl=off", "url option tsl"),
        (LOCAL + "Timeout=5", "url option"),
        (LOCAL + "password=x", "url option password"),
        (LOCAL + "username=x", "url option username"),
        (LOCAL + "tls=off&tls=off", "url option tls"),
        (LOCAL + "tls=", "url option tls"),
        (LOCAL + "tls=yes", "url option tls"),
        (LOCAL + "tls=REQUIRED", "url option tls"),
        (LOCAL + "timeout=0", "url option timeout"),
        (LOCAL + "timeout=-1", "url option timeout"),
        (LOCAL + "timeout=nan", "url option timeout"),
        (LOCAL + "timeout=inf", "url option timeout"),
        (LOCAL + "timeout=5s", "url option timeout"),
        (LOCAL + "timeout", "url option timeout"),
        (LOCAL + "pool=0", "url option pool"),
        (LOCAL + "pool=1.5", "url option pool"),
        (LOCAL + "pool=many", "url option pool"),
        (LOCAL + "local_hostname=", "url option local_hostname"),
        (LOCAL + "local_hostname=a%0D%0AMAIL", "url option local_hostname"),
        (LOCAL + "local_hostname=a%20b", "url option local_hostname"),
        (LOCAL + "pipelining=maybe", "url option pipelining"),
        (LOCAL + "window=0", "url option window"),
        (LOCAL + "connections=-1", "url option connections"),
        (LOCAL + "chunking=perhaps", "url option chunking"),
        (LOCAL + "auth=ntlm", "url option auth"),
        (LOCAL + "auth=", "url option auth"),
        (LOCAL + "auth_in_clear=perhaps", "url option auth_in_clear"),
        (LOCAL + "password_from=", "url option password_from"),
        (LOCAL + "password_from=nothing", "url option password_from"),
        (LOCAL + "tls=required&cafile=", "url option cafile"),
        (LOCAL + "tls=required&cafile=/does/not/exist", "url option cafile"),
        (LOCAL + "tls=required&certfile=/does/not/exist", "url option certfile"),
        (LOCAL + "tls=required&keyfile=/does/not/exist", "url option keyfile"),
        (LOCAL + "cafile=x", "url option cafile"),
        (LOCAL + "certfile=x", "url option certfile"),
        (LOCAL + "keyfile=x", "url option keyfile"),
        # credentials
        ("smtp://user@mx.example.com", "url"),
        ("smtp://user:@mx.example.com", "url"),
        ("smtp://:password@mx.example.com", "url"),
        ("smtp://@mx.example.com", "url"),
        ("smtp://user:password@localhost", "url"),
        ("smtp://user:password@mx.example.com?tls=off", "url"),
        ("smtp://user:%FF@mx.example.com", "url"),
        ("smtp://%FF:password@mx.example.com", "url"),
        ("smtp://us%00er:password@mx.example.com", "url"),
        ("smtp://us%0Aer:password@mx.example.com", "url"),
        ("smtp://user:pass/word@mx.example.com", "url"),
        ("smtp://user:p@ss@mx.example.com", "url"),
        ("smtp://user:x@mx.example.com?password_from=env:X", "url option password_from"),
        ("smtp://mx.example.com?password_from=env:X", "password_from"),
    ],
)
def test_what_is_unknown_or_not_supported_is_refused_by_name(url, field):
    with pytest.raises(ConfigurationError) as raised:
        from_url(url)
    assert raised.value.field == field
    assert str(raised.value).startswith(field + ": ")


def test_the_error_calls_the_url_what_its_caller_calls_it():
    with pytest.raises(ConfigurationError) as raised:
        from_url("smtp://localhost?pool=0", field="mail.url")
    assert raised.value.field == "mail.url option pool"


@pytest.mark.parametrize(
    "url",
    [
        "smtp://user:s3cret@localhost",
        "smtp://s3cret@localhost",
        "smtp://:s3cret@localhost",
        "smtp://user:s3cret@localhost:99999",
        "smtp://user:s3cret@[::1",
        "smtp://user:s3cret%40localhost",
        "smtp://user%3As3cret%40localhost",
        "smtp://user%3As3cret%2540localhost",
        "smtp://user:25s3cret/x@localhost",
        "smtp://user:s3cret/x@localhost",
        "smtp://user:s3cret?x@localhost",
        "smtp://user:25?s3cret@localhost",
        "smtp://user:25?s3cret=1@localhost",
        "smtp://user:25#s3cret@localhost",
        "smtp://user:s3cret\uff20localhost",
        "smtp://user:s3cret\u2100localhost",
        "smtp://user:s3cret:localhost",
        "smtp://s3cret_.localhost",
        "smtp://user:25?s3cret-x",
        "smtp://user:25?pool=s3cret",
        "smtp://user:25?timeout=1;password=s3cret",
        "smtp://localhost?password=s3cret",
        "smtp://localhost?auth=s3cret",
        "smtp://localhost?window=s3cret",
        "smtp://localhost?tls=s3cret",
        "smtp://localhost?pipelining=s3cret",
        "smtp://localhost?local_hostname=s3cret!",
        "smtp://user:s3cret@local\nhost",
        "smtp://user:s3cret@local host",
        "smtp:user:s3cret@localhost",
        "smtps://user:s3cret@mx.example.com?tls=off",
        "smtps://user:s3cret@mx.example.com?cafile=/does/not/exist",
        "smtp://user:s3cret@mx.example.com?tls=off",
        "smtp://user:s3cret@mx.example.com?auth=none",
        "smtp://user:s3cret@mx.example.com?pool=0",
        "smtp://user:s3cret%FF@mx.example.com",
        "smtp://mx.example.com?password_from=s3cret",
        "smtp://mx.example.com?cafile=s3cret",
        ["smtp://user:s3cret@localhost"],
        "http://user:s3cret@localhost",
        "s3cret://localhost",
        "s3cret",
        "memory:s3cret",
        b"smtp://user:s3cret@localhost",
    ],
)
def test_no_part_of_a_url_that_may_be_a_password_gets_out(url):
    with pytest.raises(ConfigurationError) as raised:
        from_url(url)
    assert not leaks(raised.value, "s3cret")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0:0:0:0:0:0:0:1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("127.1", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("xlocalhost", False),
        ("", False),
    ],
)
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback


def test_a_transport_can_be_copied_and_pickled_without_its_connections():
    with ScriptedServer() as server:
        transport = from_url(server.url + "?pool=2&timeout=5")
        transport.open().close()
        for twin in (
            copy.copy(transport),
            copy.deepcopy(transport),
            pickle.loads(pickle.dumps(transport)),
        ):
            assert isinstance(twin, SmtpTransport)
            assert twin.options == transport.options
            assert twin._size == 2
            session = twin.open()
            assert statuses(session.send([ONE])) == ["accepted"]
            session.close()
            twin.close()
        transport.close()
        assert len(server.connections) == 4
