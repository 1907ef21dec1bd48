"""TLS at commit: who proves what to whom, and that nothing is said before it is proved."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import warnings

import pytest
from authority import LOCAL, Authority
from commits import commit, note
from smtp_helpers import RawServer, greeted

from txmail import mailer_from_settings, transport_from_url
from txmail.exceptions import ConfigurationError, DeliveryUnavailable, TransportError
from txmail.testing import CLOSE, RESET, ScriptedServer, then

PASSWORD = "s3cret-in-clear"
ONE = note("one")

#: Both ways into TLS.
WAYS = ("starttls", "implicit")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"), "other")


@pytest.fixture(scope="module")
def trusted(authority):
    """A server's context in which there is nothing wrong."""
    return authority.server()


def serving(context, way="starttls", **options):
    return ScriptedServer(tls_context=context, implicit_tls=way == "implicit", **options)


def url_of(server, authority, way="starttls", *, host="127.0.0.1", login=False, more=""):
    """The URL at which TLS is required, and proved to be `authority`'s."""
    port = getattr(server, "port", 0) or server.address[1]
    who = f"user:{PASSWORD}@" if login else ""
    scheme, option = ("smtps", "") if way == "implicit" else ("smtp", "&tls=required")
    trust = f"cafile={authority.cafile}" if authority else "timeout=10"
    return f"{scheme}://{who}{host}:{port}?{trust}{option}{more}"


def assert_unsent(ended, action):
    """Nothing went out, and the outcomes say what to do about the route."""
    assert type(ended.error) is DeliveryUnavailable
    assert ended.witness == "aborted"
    assert [(o.status, o.scope, o.action) for o in ended.outcomes] == [("unsent", "route", action)]


def said_in_clear(server):
    """What clients said before the handshake, commands only."""
    return [line.split()[0] for connection in server.connections for line in connection.commands]


# Where all is well


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_verified_server_gets_the_mail(tm, make_mailer, authority, trusted, way, host):
    with serving(trusted, way) as server:
        mailer = make_mailer(url_of(server, authority, way, host=host))
        for _ in range(2):
            assert commit(tm, mailer, ONE).statuses == ["accepted"]
        (connection,) = server.connections
        assert connection.tls
        said = [line.split()[0] for line in connection.commands]
        opening = ["EHLO"] if way == "implicit" else ["EHLO", "STARTTLS", "EHLO"]
        assert said[: len(opening) + 1] == [*opening, "MAIL"]
        assert len(server.messages) == 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("way", WAYS)
def test_tls_1_2_and_1_3_are_spoken(tm, make_mailer, authority, way, version):
    context = authority.server()
    context.minimum_version = context.maximum_version = version
    with serving(context, way) as server:
        mailer = make_mailer(url_of(server, authority, way))
        assert commit(tm, mailer, ONE).statuses == ["accepted"]


def test_tls_1_1_is_not(tm, make_mailer, authority):
    context = authority.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(context) as server:
        mailer = make_mailer(url_of(server, authority, login=True))
        assert_unsent(commit(tm, mailer, ONE), "defer_route")
        assert said_in_clear(server) == ["EHLO", "STARTTLS"]


@pytest.mark.parametrize("way", WAYS)
def test_settings_name_the_files_too(tm, make_mailer, authority, trusted, way):
    with serving(trusted, way) as server:
        url = url_of(server, None, way)
        mailer = make_mailer(url, cafile=str(authority.cafile))
        assert commit(tm, mailer, ONE).statuses == ["accepted"]


def test_pyramid_mailer_s_settings_mean_verified_tls(tm, authority, trusted):
    for way, setting in (("starttls", "mail.tls"), ("implicit", "mail.ssl")):
        with serving(trusted, way) as server:
            settings = {"mail.host": "localhost", "mail.port": server.port, setting: "true"}
            trusting = mailer_from_settings({**settings, "mail.cafile": str(authority.cafile)})
            assert commit(tm, trusting.bind(transaction_manager=tm), ONE).statuses == ["accepted"]
            mailer = mailer_from_settings(settings)
            assert_unsent(commit(tm, mailer.bind(transaction_manager=tm), ONE), "stop_route")
            trusting.close()


# Certificates


def expired(authority, other):
    return authority.server(days=-1)


def of_another_host(authority, other):
    return authority.server("DNS:mx.example.com,IP:192.0.2.1")


def of_another_authority(authority, other):
    return other.server()


def self_signed(authority, other):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other.cafile, other.cafile.with_suffix(".key"))
    return context


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("made", "why"),
    [
        (expired, "expired"),
        (of_another_host, "mismatch"),
        (of_another_authority, "unable to get local issuer"),
        (self_signed, "self-signed"),
    ],
)
def test_a_certificate_that_does_not_verify_stops_the_route(
    tm, make_mailer, authority, other, made, why, way
):
    with serving(made(authority, other), way, credentials={"user": PASSWORD}) as server:
        mailer = make_mailer(url_of(server, authority, way, login=True))
        ended = commit(tm, mailer, ONE)
        assert_unsent(ended, "stop_route")
        assert why in ended.outcomes[0].reason.replace("self signed", "self-signed")
        server.wait_closed()
        assert said_in_clear(server) == ([] if way == "implicit" else ["EHLO", "STARTTLS"])
        assert not any(connection.tls for connection in server.connections)


@pytest.mark.parametrize("way", WAYS)
def test_an_authority_that_the_system_does_not_know_is_not_trusted(tm, make_mailer, trusted, way):
    with serving(trusted, way) as server:
        assert_unsent(commit(tm, make_mailer(url_of(server, None, way)), ONE), "stop_route")


def test_opportunistic_tls_takes_whoever_is_there_and_does_not_pretend_otherwise(
    tm, make_mailer, authority, other
):
    with serving(expired(authority, other)) as server:
        mailer = make_mailer(f"smtp://127.0.0.1:{server.port}?tls=opportunistic")
        assert commit(tm, mailer, ONE).statuses == ["accepted"]
        assert server.connections[0].tls


# Our own certificate


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_wants_our_certificate_gets_it(tm, make_mailer, authority, way):
    certfile, keyfile = authority.issue("DNS:client.example")
    with serving(authority.server(demand=True), way) as server:
        more = f"&certfile={certfile}&keyfile={keyfile}"
        mailer = make_mailer(url_of(server, authority, way, more=more))
        assert commit(tm, mailer, ONE).statuses == ["accepted"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("ours", ["none", "of another authority"])
def test_a_server_that_does_not_like_our_certificate_gets_nothing(
    tm, make_mailer, authority, other, way, version, ours
):
    context = authority.server(demand=True)
    context.minimum_version = context.maximum_version = version
    certfile, keyfile = other.issue("DNS:client.example")
    more = "" if ours == "none" else f"&certfile={certfile}&keyfile={keyfile}"
    with serving(context, way, credentials={"user": PASSWORD}) as server:
        mailer = make_mailer(url_of(server, authority, way, login=True, more=more))
        assert_unsent(commit(tm, mailer, ONE), "defer_route")
        server.wait_closed()
        assert not any("AUTH" in line or "MAIL" in line for line in server.commands)


def test_files_that_cannot_be_used_are_refused_at_once(authority, other, tmp_path):
    certfile, keyfile = authority.issue()
    _, others_key = other.issue()
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("this is no certificate")
    for option, values in [
        ("cafile", {"cafile": garbage}),
        ("certfile", {"certfile": garbage}),
        ("certfile", {"certfile": certfile}),
        ("certfile", {"certfile": certfile, "keyfile": others_key}),
        ("keyfile", {"keyfile": keyfile}),
    ]:
        query = "&".join(f"{name}={value}" for name, value in values.items())
        with pytest.raises(ConfigurationError) as raised:
            transport_from_url(f"smtps://mx.example.com?{query}")
        assert raised.value.field == f"url option {option}"


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(authority, tmp_path):
    certfile, keyfile = authority.issue()
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", keyfile, "-aes128", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigurationError, match="an encrypted key is not supported"):
        transport_from_url(f"smtps://mx.example.com?certfile={certfile}&keyfile={locked}")


# STARTTLS that does not come about


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("454 4.7.0 TLS not available", 454),
        ("501 5.5.4 no parameters", 501),
        ("502 what", 502),
        ("250 Ok", 250),
        ("421 4.3.0 later", 421),
        (b"220 go\r\n250-injected\r\n250 AUTH PLAIN\r\n", None),
        (b"220 go\r\n2", None),
        (b"220 go\n", None),
        (b"garbage\r\n", None),
        (CLOSE, None),
        (RESET, None),
        (then(b"220 go\r\n", CLOSE), None),
        (then(b"220 go\r\n", RESET), None),
        (then(b"220 go\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", CLOSE), None),
        (then(b"220 go\r\n", b"\x15\x03\x03\x00\x02\x02\x28", CLOSE), None),
    ],
)
def test_starttls_that_fails_defers_the_route_and_never_goes_on_in_clear(
    tm, make_mailer, authority, trusted, action, code
):
    with serving(trusted, credentials={"user": PASSWORD}) as server:
        server.on("STARTTLS", action)
        mailer = make_mailer(url_of(server, authority, login=True))
        ended = commit(tm, mailer, ONE)
        assert_unsent(ended, "defer_route")
        reply = ended.outcomes[0].reply
        assert (reply and reply.code) == code
        server.wait_closed()
        assert said_in_clear(server) == ["EHLO", "STARTTLS"]
        assert not server.connections[0].tls
        assert commit(tm, mailer, ONE).statuses == ["accepted"]


def test_starttls_taken_out_of_the_offer_defers_the_route(tm, make_mailer, authority, trusted):
    with serving(trusted, credentials={"user": PASSWORD}) as server:
        server.on("EHLO", "250-mx\nPIPELINING\nAUTH PLAIN LOGIN")
        mailer = make_mailer(url_of(server, authority, login=True))
        ended = commit(tm, mailer, ONE)
        assert_unsent(ended, "defer_route")
        assert "STARTTLS" in ended.outcomes[0].reason
        server.wait_closed()
        assert said_in_clear(server) == ["EHLO"]


def test_a_server_that_knows_helo_only_stops_the_route(tm, make_mailer, authority):
    with ScriptedServer(ehlo=False) as server:
        assert_unsent(commit(tm, make_mailer(url_of(server, authority)), ONE), "stop_route")
        assert said_in_clear(server) == ["EHLO"]


@pytest.mark.parametrize("octets", [b"250 injected\r\n", b"\x16\x03\x01\x00\x00", b""])
def test_octets_in_clear_during_the_handshake_end_it(tm, make_mailer, authority, octets):
    """They come when the handshake has begun: nobody can have read them with the reply."""
    heard = []

    def serve(connected, stopping):
        reader = greeted(connected, b"250-mx\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n")
        heard.append(reader.readline())
        connected.sendall(b"220 go\r\n")
        heard.append(connected.recv(65536)[:1])  # a record of the handshake
        rest = b""
        with contextlib.suppress(OSError):
            connected.sendall(octets)
            connected.shutdown(socket.SHUT_WR)
            rest = reader.read()
        heard.append(rest)
        over.set()

    over = threading.Event()
    with RawServer(serve) as server:
        mailer = make_mailer(url_of(server, authority, login=True))
        assert_unsent(commit(tm, mailer, ONE), "defer_route")
        assert over.wait(30)
    assert heard[:2] == [b"STARTTLS\r\n", b"\x16"]
    assert b"AUTH" not in heard[2]
    assert b"MAIL" not in heard[2]


@pytest.mark.parametrize("way", WAYS)
def test_a_handshake_that_hangs_has_an_end(tm, make_mailer, authority, way):
    def serve(connected, stopping):
        if way == "starttls":
            reader = greeted(connected, b"250-mx\r\n250 STARTTLS\r\n")
            reader.readline()
            connected.sendall(b"220 go\r\n")
        stopping.wait(30)

    with RawServer(serve) as server:
        mailer = make_mailer(url_of(server, authority, way, login=True), commit_timeout=0.3)
        assert_unsent(commit(tm, mailer, ONE), "defer_route")


def test_what_was_offered_in_clear_is_forgotten(tm, make_mailer, authority, trusted):
    """Before TLS anybody could have offered it: a weaker mechanism, a size, PIPELINING."""
    with serving(
        trusted,
        credentials={"user": PASSWORD},
        mechanisms=("CRAM-MD5",),
        extensions=("8BITMIME",),
        login_required=True,
    ) as server:
        server.on("EHLO", "250-mx\nSTARTTLS\nAUTH PLAIN\nPIPELINING\nSIZE 1")
        mailer = make_mailer(url_of(server, authority, login=True))
        # The server throws out who pipelines without having been offered it.
        assert commit(tm, mailer, ONE).statuses == ["accepted"]
        (login,) = [line for line in server.commands if line.startswith("AUTH")]
        assert login == "AUTH CRAM-MD5"
        assert not server.messages[0].parameters


def test_a_login_offered_in_clear_only_is_none(tm, make_mailer, authority, trusted):
    with serving(trusted) as server:
        server.on("EHLO", "250-mx\nSTARTTLS\nAUTH PLAIN")
        mailer = make_mailer(url_of(server, authority, login=True))
        assert_unsent(commit(tm, mailer, ONE), "stop_route")
        assert not any("AUTH" in line for line in server.commands)


def test_implicit_tls_to_a_server_in_clear_says_nothing_to_it(tm, make_mailer, authority, server):
    mailer = make_mailer(url_of(server, authority, "implicit", login=True))
    assert_unsent(commit(tm, mailer, ONE), "defer_route")
    server.wait_closed()
    assert server.commands == []


def test_the_zone_of_an_address_is_in_no_certificate():
    options = transport_from_url("smtp://[fe80::1%25eth0]").options
    assert (options.host, options.tls_name) == ("fe80::1%eth0", "fe80::1")


def test_an_ipv6_address_is_verified_as_one(tm, make_mailer, authority):
    try:
        server = ScriptedServer(host="::1", tls_context=authority.server(LOCAL)).start()
    except OSError:
        pytest.skip("there is no IPv6 here")
    with server:
        mailer = make_mailer(url_of(server, authority, host="[::1]"))
        assert commit(tm, mailer, ONE).statuses == ["accepted"]


def test_an_interrupted_handshake_leaves_no_socket_open(authority, monkeypatch):
    handshake = ssl.SSLSocket.do_handshake

    def interrupted(self, *arguments):
        if self.server_side:  # the server's own thread, in this process
            return handshake(self, *arguments)
        raise KeyboardInterrupt

    with serving(authority.server(), "implicit") as server:
        transport = transport_from_url(url_of(server, authority, "implicit"))
        with monkeypatch.context() as patched:
            patched.setattr(ssl.SSLSocket, "do_handshake", interrupted)
            with pytest.raises(KeyboardInterrupt):
                transport.open(timeout=10)
        server.wait_closed()
        transport.open(timeout=10).close()
        transport.close()


def test_transport_errors_say_whether_to_try_again(authority, other, trusted):
    for context, temporary in [(other.server(), False), (None, True)]:
        with ScriptedServer(tls_context=context) as server:
            transport = transport_from_url(url_of(server, authority))
            with pytest.raises(TransportError) as raised:
                transport.open(timeout=10)
            assert raised.value.temporary is temporary
