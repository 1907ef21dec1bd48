"""What real servers do when they are connected to: names, ports, certificates, logins."""

from __future__ import annotations

import ssl

import pytest
from authority import Authority
from commits import commit, note
from smtp_helpers import RawServer

from txmail import mailer_from_settings, transport_from_url
from txmail.exceptions import ConfigurationError, TransportError
from txmail.smtp.tls import TlsFiles, TlsMode, client_context
from txmail.testing import ScriptedServer
from txmail.transports.hosts import is_loopback, read_host

ONE = note("one")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


# A12


@pytest.mark.parametrize(
    "host",
    [
        "mail_server",
        "project_mail_1",
        "_smtp.mx.example.com",
        "mail_server.example.com",
        "mx.example.com.",
        "mail_server.",
        "xn--bcher-kva.example.",
        "3com.example",
        "a--b.example",
        "x" * 63 + ".example.",
        ".".join(["x" * 62] * 4) + ".",
    ],
)
def test_a12_a_host_to_connect_to_is_what_a_resolver_takes(host):
    """A grammar of mail addresses, applied to names that are in no address."""
    assert transport_from_url(f"smtp://{host}?tls=required").options.host == host
    settings = {"mail.host": host, "mail.tls": "true"}
    assert mailer_from_settings(settings)._direct.transport.options.host == host


@pytest.mark.parametrize(
    "host",
    [
        *("mail..example", "mx.example.com..", ".", "-mx.example", "mx-.example", "mx.-"),
        *("mx!", "mx%20a", "m\u0131x.example%0a", "x" * 64, ".".join(["x" * 63] * 4)),
        *("mail_\u00fc.example", "[mail_server]", "a,b", "a;b", "a*b", "%2e", "a%00"),
    ],
)
def test_a12_what_no_resolver_takes_is_refused(host):
    """The other half: nothing is let through that is no name at all."""
    with pytest.raises(ConfigurationError):
        transport_from_url(f"smtp://{host}?tls=required")


def test_a12_the_dot_at_the_end_is_for_the_resolver_only(authority, tm, make_mailer):
    """A certificate names no host with a dot at its end, and TLS asks for none (RFC 6066 3)."""
    asked = []
    context = authority.server("DNS:localhost")
    context.sni_callback = lambda connection, name, of: asked.append(name)
    with ScriptedServer(tls_context=context) as server:
        url = f"smtp://localhost.:{server.port}?tls=required&cafile={authority.cafile}"
        assert commit(tm, make_mailer(url), ONE).statuses == ["accepted"]
    assert asked == ["localhost"]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("localhost.", True), ("LocalHost.", True), ("::ffff:127.0.0.1", True), ("::1%lo", True)),
        *(("::ffff:192.0.2.1", False), ("local_host", False), ("localhost..", False)),
    ],
)
def test_a12_what_is_local_stays_so(host, loopback):
    """Whether TLS is needed does not depend on a dot, nor on the version of Python."""
    assert is_loopback(host) is loopback


def test_a12_no_name_is_changed():
    """What was read is what is asked for; only U-labels become A-labels."""
    assert read_host("MX_1.Example.") == "MX_1.Example."
    assert read_host("b\u00fccher.Example.") == "xn--bcher-kva.Example."
    assert read_host("localhost.") == "localhost"


# A13


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("smtp://mx.example.com:465", "smtps://"),
        ("smtp://localhost:465", "smtps://"),
        ("smtp://[2001:db8::1]:465?timeout=5", "smtps://"),
        ("smtp://ann:x@mx.example.com:465", "smtps://"),
        ("SMTP://mx.example.com:0465/", "smtps://"),
        ("smtps://mx.example.com:587", "smtp://"),
        ("smtps://ann:x@mx.example.com:587?pool=1", "smtp://"),
        ("smtps://mx.example.com:25", "smtp://"),
        ("smtps://localhost:25", "smtp://"),
    ],
)
def test_a13_a_scheme_that_does_not_fit_the_port_is_refused_at_once(url, right):
    """Two sides that both wait for the other to begin, found out by a time-out."""
    with pytest.raises(ConfigurationError, match=f"this port is {right}") as raised:
        transport_from_url(url)
    assert raised.value.field == "url"
    with pytest.raises(ConfigurationError, match=r"^mail\.url: "):
        mailer_from_settings({"mail.url": ["smtp://mx1.example.com", url]})


@pytest.mark.parametrize(
    ("url", "tls"),
    [
        ("smtp://mx.example.com:465?tls=required", "required"),
        ("smtp://mx.example.com:465?tls=implicit", "implicit"),
        ("smtp://localhost:465?tls=off", "off"),
        ("smtps://mx.example.com:587?tls=implicit", "implicit"),
        ("smtps://mx.example.com:2525", "implicit"),
        ("smtp://mx.example.com:2525", "required"),
    ],
)
def test_a13_unless_the_url_says_how_tls_begins(url, tls):
    """The other half: whoever knows better can say so."""
    assert transport_from_url(url).options.tls == tls


@pytest.mark.parametrize(
    ("settings", "say"),
    [
        ({"host": "mx.example.com", "port": 465}, "mail.ssl = true"),
        ({"host": "localhost", "port": "465"}, "mail.ssl = true"),
        ({"port": 465}, "mail.ssl = true"),
        ({"host": "mx.example.com", "port": 587, "ssl": True}, "mail.tls = true"),
        ({"host": "mx.example.com", "port": "25", "ssl": "yes"}, "mail.tls = true"),
    ],
)
def test_a13_settings_name_the_port_and_what_to_say(settings, say):
    """The same, where there is no URL to be wrong."""
    with pytest.raises(ConfigurationError, match=say) as raised:
        mailer_from_settings({f"mail.{name}": value for name, value in settings.items()})
    assert raised.value.field == "mail.port"


@pytest.mark.parametrize(
    "greeting", [b"220 mx ESMTP\r\n", b"554 go away\r\n", b"220-mx\r\n220 mx\r\n", b"+OK ready\r\n"]
)
def test_a13_a_server_that_speaks_in_clear_is_told_from_one_that_fails(greeting):
    """On ports of one's own nobody knows before; then what comes first tells it."""
    heard = []

    def serve(connected, stopping):
        connected.sendall(greeting)
        while octets := connected.recv(65536):
            heard.append(octets)

    with RawServer(serve) as server:
        port = server.address[1]
        transport = transport_from_url(f"smtps://ann:pencil@127.0.0.1:{port}?timeout=30")
        with pytest.raises(ConfigurationError, match=f"this port is smtp://127.0.0.1:{port}") as e:
            transport.open()
        assert isinstance(e.value, TransportError)
        assert e.value.temporary
    assert not any(b"AUTH" in octets or b"EHLO" in octets for octets in heard)


def test_a13_a_server_that_says_nothing_may_be_waiting_for_tls():
    """There is nothing to see, so that the time-out names the possibility."""

    def serve(connected, stopping):
        stopping.wait(30)

    with RawServer(serve) as server:
        transport = transport_from_url(f"smtp://127.0.0.1:{server.address[1]}?timeout=0.1")
        with pytest.raises(TransportError, match=r"in time; if TLS begins at once .* smtps://"):
            transport.open()


# A15

#: What each certificate lacks of RFC 5280, and OpenSSL's word for it.
LACKING = [
    ({}, {"authorityKeyIdentifier": "none"}, "Missing Authority Key Identifier"),
    ({"subjectKeyIdentifier": "none"}, {"authorityKeyIdentifier": "issuer"}, "Key Identifier"),
    ({"basicConstraints": "CA:TRUE"}, {}, "Basic Constraints of CA cert not marked critical"),
    ({"keyUsage": ""}, {}, "CA cert does not include key usage extension"),
]


@pytest.mark.parametrize("lacking", LACKING, ids=["aki", "ski", "constraints", "usage"])
def test_a15_strictness_is_a_setting_and_no_accident(tmp_path, tm, make_mailer, lacking):
    """A verification that depends on the version of Python."""
    of_authority, of_server, why = lacking
    authority = Authority(tmp_path, **of_authority)
    context = authority.server(**of_server)
    with ScriptedServer(tls_context=context, implicit_tls=True) as server:
        url = f"smtps://localhost:{server.port}?cafile={authority.cafile}"
        for strict in ("", "&x509_strict=yes"):
            ended = commit(tm, make_mailer(url + strict), ONE)
            assert [str(o.action) for o in ended.outcomes] == ["stop_route"]
            assert why in ended.outcomes[0].reason
        relaxed = make_mailer(url + "&x509_strict=no")
        assert commit(tm, relaxed, ONE).statuses == ["accepted"]


def test_a15_relaxed_is_still_verified(authority, tmp_path, tm, make_mailer):
    """What is relaxed is the form of certificates: not whose they are, nor for whom."""
    other = Authority(tmp_path, "other")
    contexts = [
        other.server(),
        authority.server("DNS:elsewhere.example"),
        authority.server(days=-1),
    ]
    for context in contexts:
        with ScriptedServer(tls_context=context) as server:
            url = f"smtp://localhost:{server.port}?tls=required&cafile={authority.cafile}"
            ended = commit(tm, make_mailer(url + "&x509_strict=no"), ONE)
            assert [str(o.action) for o in ended.outcomes] == ["stop_route"]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("mode", [TlsMode.REQUIRED, TlsMode.IMPLICIT])
def test_a15_no_flag_is_left_to_the_version_of_python(strict, mode):
    """All that `ssl.create_default_context` has ever set by itself is set or cleared here."""
    context = client_context(mode, TlsFiles(), x509_strict=strict)
    of_versions = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    expected = of_versions if strict else ssl.VERIFY_X509_PARTIAL_CHAIN
    assert context.verify_flags & of_versions == expected
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("smtp://localhost?x509_strict=no", "url option x509_strict"),
        ("smtp://mx.example.com?x509_strict=perhaps", "url option x509_strict"),
        ("smtp://mx.example.com?x509_strict=", "url option x509_strict"),
        ("smtp://mx.example.com?x509_strict=no&x509_strict=no", "url option x509_strict"),
        ("smtp://mx.example.com?strict=no", "url option strict"),
    ],
)
def test_a15_the_option_is_refused_where_it_means_nothing(url, field):
    """An option that does nothing, or is misspelt, is told by name."""
    with pytest.raises(ConfigurationError) as raised:
        transport_from_url(url)
    assert raised.value.field == field
