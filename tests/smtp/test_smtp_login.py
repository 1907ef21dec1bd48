"""Logging in: which mechanism, over what, how often, and to whom."""

from __future__ import annotations

import base64
import ssl
import threading

import pytest
from clocks import START
from commits import commit, note
from smtp_helpers import RawServer, greeted

from txmail.exceptions import ConfigurationError, DeliveryUnavailable, TransportError
from txmail.smtp.auth import MECHANISMS, AuthenticationFailed
from txmail.smtp.stream import Stream
from txmail.testing import CLOSE, HANG, RESET, ScriptedServer, then
from txmail.transports.login_limit import PERIOD, TRIES

USER, PASSWORD = "ann@example.com", "pencil & paper/\u00e9"
ONE = note("one")

#: Without channel binding, which needs TLS.
UNBOUND = tuple(name for name in MECHANISMS if not name.endswith("-PLUS"))


@pytest.fixture(scope="module")
def contexts(authority):
    """Contexts for a server, by the version of TLS that they speak."""
    made = {}
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = made[version.name] = authority.server()
        context.minimum_version = context.maximum_version = version
    return made


def serving(context=None, **options):
    """A server that takes mail from Ann only."""
    options = {"credentials": {USER: PASSWORD}, "login_required": True, **options}
    return ScriptedServer(tls_context=context, **options)


@pytest.fixture
def log_in(make_mailer, authority, monkeypatch):
    """Make mailers that log in at a server; in clear, if it has no TLS."""
    monkeypatch.setenv("TXMAIL_TEST_PASSWORD", PASSWORD)

    def make(server, encrypted=True, user=USER, more="", **settings):
        port = getattr(server, "port", 0) or server.address[1]
        query = f"cafile={authority.cafile}&tls=required" if encrypted else "auth_in_clear=yes"
        if "password" not in settings:
            settings.setdefault("password_from", "env:TXMAIL_TEST_PASSWORD")
        return make_mailer(f"smtp://127.0.0.1:{port}?{query}{more}", username=user, **settings)

    return make


def assert_unsent(ended, action):
    assert type(ended.error) is DeliveryUnavailable
    assert [(o.status, o.scope, o.action) for o in ended.outcomes] == [("unsent", "route", action)]


def logins(server):
    """The AUTH commands, without what was said with them."""
    return [" ".join(line.split()[:2]) for line in server.commands if line.startswith("AUTH")]


# Mechanisms


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("pipelining", ["yes", "no"])
def test_each_mechanism_logs_in(tm, log_in, contexts, mechanism, pipelining):
    with serving(contexts["TLSv1_2"], mechanisms=(mechanism,)) as server:
        mailer = log_in(server, more=f"&auth={mechanism}&pipelining={pipelining}")
        for _ in range(2):
            assert commit(tm, mailer, ONE).statuses == ["accepted"]
        assert logins(server) == [f"AUTH {mechanism}"]
        (connection,) = server.connections
        said = [line.split()[0] for line in connection.commands]
        assert said[:5] == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_mechanism_is_refused_with_a_wrong_password(tm, log_in, contexts, mechanism):
    with serving(contexts["TLSv1_2"], mechanisms=(mechanism,)) as server:
        mailer = log_in(server, more=f"&auth={mechanism}", password="wrong")
        ended = commit(tm, mailer, ONE)
        assert_unsent(ended, "stop_route")
        assert ended.outcomes[0].reply.code == 535
        assert f"{USER}@127.0.0.1" in ended.outcomes[0].reason
        server.wait_closed()
        assert logins(server) == [f"AUTH {mechanism}"]


@pytest.mark.parametrize(
    ("version", "offered", "taken"),
    [
        ("TLSv1_2", MECHANISMS, "SCRAM-SHA-256-PLUS"),
        ("TLSv1_3", MECHANISMS, "SCRAM-SHA-256"),
        ("TLSv1_2", UNBOUND, "SCRAM-SHA-256"),
        ("TLSv1_3", ("LOGIN", "PLAIN", "CRAM-MD5"), "PLAIN"),
        ("TLSv1_3", ("XOAUTH2", "LOGIN", "CRAM-MD5"), "LOGIN"),
        ("TLSv1_3", ("XOAUTH2", "CRAM-MD5"), "CRAM-MD5"),
    ],
)
def test_the_strongest_that_is_offered_is_taken(tm, log_in, contexts, version, offered, taken):
    with serving(contexts[version], mechanisms=tuple(reversed(offered))) as server:
        assert commit(tm, log_in(server), ONE).statuses == ["accepted"]
        assert logins(server) == [f"AUTH {taken}"]


@pytest.mark.parametrize("mechanism", [name.lower() for name in UNBOUND])
def test_the_configured_one_is_taken_whatever_else_is_offered(tm, log_in, contexts, mechanism):
    with serving(contexts["TLSv1_3"]) as server:
        mailer = log_in(server, more=f"&auth={mechanism}")
        assert commit(tm, mailer, ONE).statuses == ["accepted"]
        assert logins(server) == [f"AUTH {mechanism.upper()}"]


@pytest.mark.parametrize(
    ("configured", "offered"),
    [
        ("SCRAM-SHA-256", ("PLAIN", "LOGIN")),
        ("SCRAM-SHA-256-PLUS", UNBOUND),
        ("LOGIN", ("PLAIN",)),
        ("", ("XOAUTH2",)),
    ],
)
def test_where_it_is_not_offered_none_is(tm, log_in, contexts, configured, offered):
    with serving(contexts["TLSv1_2"], mechanisms=offered) as server:
        mailer = log_in(server, more=configured and f"&auth={configured}")
        assert_unsent(commit(tm, mailer, ONE), "stop_route")
        server.wait_closed()
        assert logins(server) == []


def test_channel_binding_that_is_offered_and_cannot_be_is_not_replaced_by_less(
    tm, log_in, contexts
):
    with serving(contexts["TLSv1_3"]) as server:
        for _ in range(2):
            server.on("EHLO", "250-mx\nSTARTTLS\nAUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256")
        mailer = log_in(server, more="&auth=SCRAM-SHA-256-PLUS")
        ended = commit(tm, mailer, ONE)
        assert_unsent(ended, "stop_route")
        assert "TLS 1.2" in ended.outcomes[0].reason
        assert logins(server) == []


def test_an_offer_of_channel_binding_that_was_taken_away_is_found_out(tm, log_in, contexts):
    """RFC 5802 section 6: the server learns, signed, that we saw no offer of it."""
    with serving(contexts["TLSv1_2"]) as server:
        # After STARTTLS, where only who sits in the middle of TLS could do it.
        server.on("EHLO", "250-mx\nAUTH SCRAM-SHA-256", after=1)
        assert_unsent(commit(tm, log_in(server), ONE), "stop_route")
        assert logins(server) == ["AUTH SCRAM-SHA-256"]


def test_channel_binding_is_to_this_connection(tm, log_in, contexts, monkeypatch):
    """What somebody in the middle would relay is bound to his connection, and not to ours."""
    monkeypatch.setattr(Stream, "channel_binding", lambda self: ("tls-unique", b"another one"))
    with serving(contexts["TLSv1_2"]) as server:
        assert_unsent(commit(tm, log_in(server), ONE), "stop_route")
        assert logins(server) == ["AUTH SCRAM-SHA-256-PLUS"]


# In clear


@pytest.mark.parametrize("mechanism", UNBOUND)
def test_nobody_logs_in_in_clear(tm, make_mailer, mechanism):
    with serving() as server:
        url = f"smtp://u:{'x' * 9}@127.0.0.1:{server.port}?tls=opportunistic&auth={mechanism}"
        assert_unsent(commit(tm, make_mailer(url), ONE), "stop_route")
        server.wait_closed()
        assert [line.split()[0] for line in server.commands] == ["EHLO"]


@pytest.mark.parametrize("mechanism", UNBOUND)
def test_except_where_it_is_said(tm, log_in, mechanism):
    with serving() as server:
        mailer = log_in(server, encrypted=False, more=f"&auth={mechanism}")
        assert commit(tm, mailer, ONE).statuses == ["accepted"]
        assert logins(server) == [f"AUTH {mechanism}"]


# What the server says


@pytest.mark.representative(every=8)
@pytest.mark.parametrize(
    ("action", "route", "code"),
    [
        ("535 5.7.8 wrong", "stop_route", 535),
        ("534 5.7.9 too weak", "stop_route", 534),
        ("530 5.7.0 no", "stop_route", 530),
        ("538 5.7.11 encrypt", "stop_route", 538),
        ("504 5.5.4 no such mechanism", "stop_route", 504),
        ("550 5.7.1 never", "stop_route", 550),
        ("454 4.7.0 not now", "defer_route", 454),
        ("421 4.3.0 bye", "defer_route", 421),
        ("450 later", "defer_route", 450),
        ("250 2.0.0 Ok", "defer_route", None),
        ("220 welcome", "defer_route", None),
        ("236 nearly", "defer_route", None),
        (b"354 go\r\n", "defer_route", None),
        (b"235-welcome\r\n250 Ok\r\n", "defer_route", None),
        (b"235 welcome\n", "defer_route", None),
        (b"235\xff\r\n", "defer_route", None),
        (b"2351 welcome\r\n", "defer_route", None),
        (b"99 welcome\r\n", "defer_route", None),
        (then(b"235", CLOSE), "defer_route", None),
        (then(b"235 welcome\r", CLOSE), "defer_route", None),
        (b"334 not base64!\r\n", "defer_route", None),
        (CLOSE, "defer_route", None),
        (RESET, "defer_route", None),
        (HANG, "defer_route", None),
    ],
)
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "SCRAM-SHA-256"])
def test_only_235_is_a_login(tm, log_in, contexts, mechanism, action, route, code):
    with serving(contexts["TLSv1_3"]) as server:
        server.on("AUTH", action)
        patience = 0.5 if action is HANG else 20
        mailer = log_in(server, more=f"&auth={mechanism}", commit_timeout=patience)
        ended = commit(tm, mailer, ONE)
        assert_unsent(ended, route)
        reply = ended.outcomes[0].reply
        assert (reply and reply.code) == code
        assert logins(server) == [f"AUTH {mechanism}"]
        assert server.messages == []
        assert not any(line.startswith("MAIL") for line in server.commands)


@pytest.mark.parametrize("challenge", [b"", b"TW9yZQ==", base64.b64encode(b"v=" + b"x" * 44)])
@pytest.mark.parametrize("mechanism", UNBOUND)
def test_a_server_that_asks_for_ever_is_left(tm, log_in, mechanism, challenge):
    answers = []

    def serve(connected, stopping):
        reader = greeted(connected, f"250-mx\r\n250 AUTH {mechanism}\r\n".encode())
        while line := reader.readline():
            answers.append(line)
            connected.sendall(b"334 " + challenge + b"\r\n")

    with RawServer(serve) as server:
        mailer = log_in(server, encrypted=False, more=f"&auth={mechanism}")
        assert_unsent(commit(tm, mailer, ONE), "stop_route")
    assert len(answers) <= 3
    assert not any(b"MAIL" in line for line in answers)


def test_an_unsolicited_235_is_none(tm, log_in):
    def serve(connected, stopping):
        reader = greeted(connected, b"250-mx\r\n250 AUTH PLAIN\r\n235 welcome\r\n")
        heard.append(reader.read())

    heard = []
    with RawServer(serve) as server:
        assert_unsent(commit(tm, log_in(server, encrypted=False), ONE), "defer_route")
    assert heard in ([b""], [])


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"])
def test_a_server_that_does_not_know_the_password_is_not_believed(tm, log_in, contexts, mechanism):
    """It says 235 without a proof, whatever the client's proof was."""
    impostor = serving(contexts["TLSv1_2"], credentials={USER: "something else"})
    with impostor as server:
        server.on("AUTH", "235 2.7.0 welcome")
        ended = commit(tm, log_in(server, more=f"&auth={mechanism}"), ONE)
        assert_unsent(ended, "stop_route")
        assert "proved" in ended.outcomes[0].reason
        assert server.messages == []


@pytest.mark.parametrize(
    ("final", "why"), [(b"v=" + base64.b64encode(b"x" * 32), "know"), (b"e=other-error", "accept")]
)
def test_a_server_that_makes_up_its_proof_is_not_believed(tm, log_in, final, why):
    def serve(connected, stopping):
        reader = greeted(connected, b"250-mx\r\n250 AUTH SCRAM-SHA-256\r\n")
        first = base64.b64decode(reader.readline().split()[2])
        nonce = first.rpartition(b"r=")[2]
        challenge = b"r=%bx,s=c2FsdHNhbHQ=,i=4096" % nonce
        connected.sendall(b"334 " + base64.b64encode(challenge) + b"\r\n")
        reader.readline()
        connected.sendall(b"334 " + base64.b64encode(final) + b"\r\n")
        heard.append(reader.read())

    heard = []
    with RawServer(serve) as server:
        ended = commit(tm, log_in(server, encrypted=False), ONE)
    assert_unsent(ended, "stop_route")
    assert why in ended.outcomes[0].reason
    assert heard in ([b""], [])


def test_a_server_that_turns_mail_away_before_a_login_stops_the_route(tm, make_mailer):
    with serving() as server:
        ended = commit(tm, make_mailer(f"smtp://127.0.0.1:{server.port}"), ONE)
        assert type(ended.error) is DeliveryUnavailable
        (outcome,) = ended.outcomes
        assert (outcome.action, outcome.reply.code) == ("stop_route", 530)


# Tokens


class Tokens:
    """A source of tokens: each is good for one login."""

    asked = 0

    @classmethod
    def next(cls):
        cls.asked += 1
        return f"token-{cls.asked}"


def next_token():
    return Tokens.next()


def long_token():
    return "t" * 3000


def no_token():
    secret = PASSWORD
    raise TimeoutError(f"the authority says nothing to {secret}")


def test_a_token_is_asked_for_anew_for_each_connection(tm, log_in, contexts, monkeypatch):
    monkeypatch.setattr(Tokens, "asked", 0)
    with serving(contexts["TLSv1_3"], credentials={USER: "token-1"}) as server:
        source = f"{__name__}:next_token"
        mailer = log_in(server, more="&auth=XOAUTH2", password_from=source)
        for _ in range(3):
            assert commit(tm, mailer, ONE).statuses == ["accepted"]
        assert Tokens.asked == 1
        mailer.close()
        ended = commit(tm, mailer, ONE)
        assert_unsent(ended, "stop_route")
        assert Tokens.asked == 2
    said = [line.split()[2] for line in server.commands if line.startswith("AUTH")]
    assert [f"token-{n}" in base64.b64decode(text).decode() for n, text in enumerate(said, 1)] == [
        *(True, True)
    ]


def test_a_token_too_long_for_the_command_follows_it(tm, log_in, contexts):
    with serving(contexts["TLSv1_3"], credentials={USER: long_token()}) as server:
        source = f"{__name__}:long_token"
        mailer = log_in(server, more="&auth=XOAUTH2", password_from=source)
        assert commit(tm, mailer, ONE).statuses == ["accepted"]
        assert [line for line in server.commands if line.startswith("AUTH")] == ["AUTH XOAUTH2"]


@pytest.mark.parametrize("length", [360, 380, 600])
def test_so_does_a_long_password(tm, log_in, contexts, length):
    long = "p" * length
    with serving(contexts["TLSv1_3"], credentials={USER: long}, mechanisms=("PLAIN",)) as server:
        assert commit(tm, log_in(server, password=long), ONE).statuses == ["accepted"]
        assert all(len(line) <= 510 for line in server.commands)


def test_a_source_that_fails_is_an_error_that_names_us(tm, log_in, contexts):
    with serving(contexts["TLSv1_3"]) as server:
        mailer = log_in(server, password_from=f"{__name__}:no_token")
        with pytest.raises(ConfigurationError, match=f"{USER}@127.0.0.1: .*TimeoutError"):
            commit(tm, mailer, ONE)
        tm.abort()
        server.wait_closed()
        assert logins(server) == []


# How often


@pytest.fixture
def transport(make_timed):
    """Make transports that log in in clear."""

    def make(server, password="wrong"):
        url = f"smtp://{USER.replace('@', '%40')}:{password}@127.0.0.1:{server.port}"
        return make_timed(f"{url}?auth_in_clear=yes")

    return make


def test_a_wrong_password_is_tried_a_few_times_an_hour(transport, clock):
    with serving() as server:
        tried = transport(server)
        for _ in range(TRIES):
            clock.now += 60
            with pytest.raises(AuthenticationFailed):
                tried.open()
        for _ in range(5):
            with pytest.raises(TransportError, match="not tried again for 58 min") as raised:
                tried.open()
            assert not raised.value.temporary
        assert len(server.connections) == TRIES
        clock.now = START + 60 + PERIOD
        with pytest.raises(AuthenticationFailed):
            tried.open()
        with pytest.raises(TransportError, match="not tried again for 1 min"):
            tried.open()
        assert len(server.connections) == TRIES + 1


def test_a_person_who_has_mended_it_closes_the_transport(transport):
    with serving() as server:
        tried = transport(server)
        for _ in range(TRIES + 1):
            with pytest.raises(TransportError):
                tried.open()
        tried.close()
        with pytest.raises(AuthenticationFailed):
            tried.open()
        assert len(server.connections) == TRIES + 1


def test_a_login_that_succeeds_forgives_what_failed_before(transport, clock):
    with serving() as server:
        tried = transport(server, "pencil%20%26%20paper%2F%C3%A9")
        for _ in range(3):
            server.on("AUTH", "535 not you", times=TRIES - 1)
            for _ in range(TRIES - 1):
                with pytest.raises(AuthenticationFailed):
                    tried.open(fresh=True)
            tried.open(fresh=True).close()


@pytest.mark.parametrize("action", ["454 4.7.0 later", CLOSE, b"99\r\n"])
def test_what_is_not_a_refused_login_may_be_tried_again_at_once(transport, action):
    with serving() as server:
        tried = transport(server, "pencil%20%26%20paper%2F%C3%A9")
        server.on("AUTH", action, times=TRIES + 1)
        for _ in range(TRIES + 1):
            with pytest.raises(TransportError) as raised:
                tried.open()
            assert raised.value.temporary
        tried.open().close()


def test_many_threads_together_do_not_try_more_often(transport):
    with serving() as server:
        tried = transport(server)
        together = threading.Barrier(8)
        errors = []

        def work():
            together.wait(10)
            try:
                tried.open(wait=False)
            except TransportError as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(errors) == 8
        assert len(logins(server)) == TRIES


def test_a_login_that_takes_too_long_does_not_hold_others_for_ever(transport):
    with serving() as server:
        server.on("AUTH", HANG)
        tried = transport(server)

        def hang():
            with pytest.raises(TransportError):
                tried.open(timeout=1)

        first = threading.Thread(target=hang)
        first.start()
        server.wait_for(lambda: logins(server))
        with pytest.raises(TransportError, match="another login") as raised:
            tried.open(timeout=0.1, wait=False)
        assert raised.value.temporary
        first.join(20)
        assert not first.is_alive()


def test_a_commit_that_may_not_try_says_why(tm, log_in, contexts):
    with serving(contexts["TLSv1_3"]) as server:
        mailer = log_in(server, password="wrong")
        for _ in range(TRIES):
            assert_unsent(commit(tm, mailer, ONE), "stop_route")
        ended = commit(tm, mailer, ONE)
        assert_unsent(ended, "stop_route")
        assert "may not log in" in ended.outcomes[0].reason
        assert "not tried again" in ended.outcomes[0].reason
        assert len(logins(server)) == TRIES
