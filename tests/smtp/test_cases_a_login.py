"""What real servers do when they are connected to: names, ports, certificates, logins."""

from __future__ import annotations

import base64
import hmac
import ssl

import pytest
from authority import Authority
from clocks import START
from commits import commit, note
from secrecy import has
from smtp_helpers import RawServer, greeted

from txmail import mailer_from_settings, transport_from_url
from txmail.exceptions import ConfigurationError, TransportError
from txmail.reply import Reply
from txmail.smtp.auth import AuthenticationFailed
from txmail.smtp.extensions import Extensions
from txmail.smtp.tls import TlsFiles, TlsMode, client_context
from txmail.testing import CLOSE, ScriptedServer, then
from txmail.transports.hosts import is_loopback, read_host
from txmail.transports.login_limit import PERIOD, TRIES, TRIES_OF_A_PROGRAM

USER, PASSWORD = "ann", "pencil & paper"
ONE = note("one")


@pytest.fixture
def log_in(make_mailer):
    """Make mailers that log in, in clear, at a server."""

    def make(server, more=""):
        port = getattr(server, "port", 0) or server.address[1]
        url = f"smtp://{USER}@127.0.0.1:{port}?auth_in_clear=yes{more}"
        return make_mailer(url, password=PASSWORD)

    return make


def logged_in_only(**options):
    """A server that takes mail from Ann only."""
    options = {"credentials": {USER: PASSWORD}, "login_required": True, **options}
    return ScriptedServer(**options)


def take_one(connected, reader):
    """Say yes to whatever comes, and take a message."""
    for line in reader:
        if line == b"DATA\r\n":
            connected.sendall(b"354 go\r\n")
            while reader.readline() not in (b".\r\n", b""):
                pass
        connected.sendall(b"250 Ok\r\n")


def assert_stopped(ended):
    assert [(str(o.status), str(o.action)) for o in ended.outcomes] == [("unsent", "stop_route")]


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
    with pytest.raises(ConfigurationError, match=f"say {right}") as raised:
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
        with pytest.raises(ConfigurationError, match=f"say smtp://127.0.0.1:{port}") as e:
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


# A10

OFFERS = [
    ("AUTH=LOGIN PLAIN", {"LOGIN", "PLAIN"}),
    ("auth=login plain", {"LOGIN", "PLAIN"}),
    ("AUTH=PLAIN", {"PLAIN"}),
    ("AUTH= PLAIN LOGIN", {"PLAIN", "LOGIN"}),
    ("AUTH NTLM\nAUTH PLAIN", {"NTLM", "PLAIN"}),
    ("AUTH PLAIN\nAUTH NTLM", {"NTLM", "PLAIN"}),
    ("AUTH LOGIN\nAUTH=LOGIN PLAIN", {"LOGIN", "PLAIN"}),
    ("AUTH PLAIN LOGIN\nAUTH=NTLM\nauth CRAM-MD5", {"PLAIN", "LOGIN", "NTLM", "CRAM-MD5"}),
    ("AUTH", set()),
    ("AUTH=", set()),
    ("AUTHPLAIN LOGIN", set()),
    ("XAUTH=PLAIN", set()),
    ("AUTH PLA\u0131N LOG\u0130N", set()),
]


@pytest.mark.parametrize(("lines", "offered"), OFFERS)
def test_a10_every_line_that_offers_mechanisms_counts(lines, offered):
    """An offer in the form of an old draft, or in several lines."""
    reply = Reply(250, ("mx.example.com", *lines.split("\n"), "SIZE 1000"))
    extensions = Extensions.from_ehlo(reply)
    assert extensions.auth == offered
    assert extensions.size_limit == 1000


@pytest.mark.parametrize("lines", [lines for lines, offered in OFFERS if "PLAIN" in offered])
def test_a10_such_a_server_is_logged_in_at(tm, log_in, lines):
    """The same, at a server."""
    with logged_in_only() as server:
        server.on("EHLO", "250-mx\n" + lines)
        assert commit(tm, log_in(server), ONE).statuses == ["accepted"]


PROMPTS = [
    (b"VXNlcm5hbWU6", b"UGFzc3dvcmQ6"),
    (b"VXNlcm5hbWU6 ", b"UGFzc3dvcmQ6 \t"),
    (b"VXNlcg", b"UGFzcw"),
    (b"VXNlcm5hbWU", b"UGFzc3dvcmQ"),
    (b"Username:", b"Password:"),
    (b"", b""),
    (b"=", b"="),
    (b"p\xe4ssword? \xff", b"\xc3\xa9\x00\x07"),
    (b"UGFzc3dvcmQ6", b"VXNlcm5hbWU6"),
    (b"x" * 3000, b"!" * 3000),
]


@pytest.mark.parametrize("prompts", PROMPTS)
def test_a10_the_prompts_of_login_are_not_read(tm, log_in, prompts):
    """A text that nobody needs, refused for its form."""
    said = []

    def serve(connected, stopping):
        reader = greeted(connected, b"250-mx\r\n250 AUTH LOGIN\r\n")
        said.append(reader.readline())
        for prompt in prompts:
            connected.sendall(b"334 " + prompt + b"\r\n")
            said.append(reader.readline())
        connected.sendall(b"235 welcome\r\n")
        take_one(connected, reader)

    with RawServer(serve) as server:
        assert commit(tm, log_in(server), ONE).statuses == ["accepted"]
    assert said[0] == b"AUTH LOGIN\r\n"
    assert [base64.b64decode(line).decode() for line in said[1:]] == [USER, PASSWORD]


def test_a10_a_prompt_without_a_text_is_one(tm, log_in):
    """``334`` and nothing else."""

    def serve(connected, stopping):
        reader = greeted(connected, b"250-mx\r\n250 AUTH LOGIN\r\n")
        for _ in range(2):
            reader.readline()
            connected.sendall(b"334\r\n")
        reader.readline()
        connected.sendall(b"235 welcome\r\n")
        take_one(connected, reader)

    with RawServer(serve) as server:
        assert commit(tm, log_in(server), ONE).statuses == ["accepted"]


@pytest.mark.parametrize(
    "form", [lambda c: c.rstrip(b"="), lambda c: c + b" ", lambda c: c + b"\t"]
)
def test_a10_a_challenge_that_is_read_may_lack_its_padding(tm, log_in, form):
    """What every server has to get right for others is read as leniently as can be."""
    answers = []

    def serve(connected, stopping):
        reader = greeted(connected, b"250-mx\r\n250 AUTH CRAM-MD5\r\n")
        reader.readline()
        connected.sendall(b"334 " + form(base64.b64encode(b"<1@mx>")) + b"\r\n")
        answers.append(base64.b64decode(reader.readline()))
        connected.sendall(b"235 welcome\r\n")
        take_one(connected, reader)

    with RawServer(serve) as server:
        assert commit(tm, log_in(server), ONE).statuses == ["accepted"]
    digest = hmac.new(PASSWORD.encode(), b"<1@mx>", "md5").hexdigest()
    assert answers == [f"{USER} {digest}".encode()]


@pytest.mark.parametrize(
    ("offer", "more", "told"),
    [
        ("NTLM GSSAPI", "", ["GSSAPI, NTLM"]),
        ("XOAUTH2 OAUTHBEARER", "", ["OAUTHBEARER, XOAUTH2", "auth=XOAUTH2"]),
        ("PLAIN LOGIN", "&auth=SCRAM-SHA-256", ["LOGIN, PLAIN", "SCRAM-SHA-256", "auth="]),
        ("PLAIN", "&auth=LOGIN,CRAM-MD5", ["PLAIN", "LOGIN,CRAM-MD5", "auth="]),
        ("SCRAM-SHA-256-PLUS PLAIN", "&auth=SCRAM-SHA-256-PLUS", ["PLAIN", "TLS 1.2", "auth="]),
        ("\x1b[2J\x07", "", ["\\x1b[2J"]),
        ("X" * 2000, "", ["X" * 200 + "..."]),
        ("", "", ["offers no authentication"]),
    ],
)
def test_a10_the_error_says_what_was_offered(tm, log_in, offer, more, told):
    """An error that does not say what a person needs to mend it."""
    with logged_in_only() as server:
        server.on("EHLO", f"250-mx\nAUTH {offer}", times=None)
        ended = commit(tm, log_in(server, more), ONE)
        assert_stopped(ended)
        reason = ended.outcomes[0].reason
        assert all(text in reason for text in told)
        assert reason.isprintable()
        assert len(reason) < 500


# A11

NOT_THERE = ["500 5.5.1 what", "502 5.5.2 what", "504 5.5.4 no", "504", b"502 no AUTH here\r\n"]


def logins(server):
    return [" ".join(line.split()[:2]) for line in server.commands if line.startswith("AUTH")]


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("reply", NOT_THERE)
@pytest.mark.parametrize(
    ("offered", "more", "expected"),
    [
        (("PLAIN", "LOGIN"), "", ["PLAIN", "LOGIN"]),
        (("LOGIN", "PLAIN", "CRAM-MD5", "XOAUTH2"), "", ["PLAIN", "LOGIN"]),
        (("PLAIN", "LOGIN"), "&auth=LOGIN,PLAIN", ["LOGIN", "PLAIN"]),
        (("SCRAM-SHA-256", "PLAIN"), "&auth=SCRAM-SHA-256,PLAIN", ["SCRAM-SHA-256", "PLAIN"]),
        (("SCRAM-SHA-256", "LOGIN"), "&auth=scram-sha-256,%20login", ["SCRAM-SHA-256", "LOGIN"]),
        (("CRAM-MD5", "PLAIN"), "&auth=CRAM-MD5,PLAIN", ["CRAM-MD5", "PLAIN"]),
    ],
)
def test_a11_a_mechanism_that_is_not_there_is_replaced_by_its_like(
    tm, log_in, reply, offered, more, expected
):
    """A server that offers what it does not know."""
    with logged_in_only(mechanisms=offered) as server:
        server.on("AUTH", reply)
        assert commit(tm, log_in(server, more), ONE).statuses == ["accepted"]
        assert logins(server) == [f"AUTH {name}" for name in expected]


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("reply", NOT_THERE)
@pytest.mark.parametrize(
    ("offered", "more", "tried"),
    [
        (("SCRAM-SHA-256", "PLAIN", "LOGIN"), "", ["SCRAM-SHA-256"]),
        (("SCRAM-SHA-256", "CRAM-MD5"), "", ["SCRAM-SHA-256"]),
        (("CRAM-MD5", "XOAUTH2"), "", ["CRAM-MD5"]),
        (("PLAIN", "LOGIN"), "&auth=PLAIN", ["PLAIN"]),
        (("PLAIN", "LOGIN"), "&auth=LOGIN", ["LOGIN"]),
        (("PLAIN", "CRAM-MD5"), "", ["PLAIN"]),
        (("PLAIN", "LOGIN", "CRAM-MD5"), "", ["PLAIN", "LOGIN"]),
        (("SCRAM-SHA-256", "PLAIN"), "&auth=SCRAM-SHA-256,LOGIN", ["SCRAM-SHA-256"]),
        (("CRAM-MD5", "LOGIN", "PLAIN"), "&auth=CRAM-MD5,PLAIN", ["CRAM-MD5", "PLAIN"]),
    ],
)
def test_a11_never_by_something_that_shows_more(tm, log_in, reply, offered, more, tried):
    """A downgrade that whoever is in between could ask for; and an error that says what to do."""
    with logged_in_only(mechanisms=offered) as server:
        server.on("AUTH", reply, times=None)
        ended = commit(tm, log_in(server, more), ONE)
        assert_stopped(ended)
        assert "auth=" in ended.outcomes[0].reason
        assert tried[-1] in ended.outcomes[0].reason
        assert ended.outcomes[0].reply.code in (500, 502, 504)
        assert logins(server) == [f"AUTH {name}" for name in tried]
        assert server.messages == []


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("code", [530, 534, 535, 538, 501, 550, 554])
@pytest.mark.parametrize("more", ["", "&auth=PLAIN,LOGIN"])
def test_a11_a_login_that_is_refused_is_not_tried_in_another_way(tm, log_in, code, more):
    """A wrong password is not tried twice: providers count."""
    with logged_in_only(mechanisms=("PLAIN", "LOGIN")) as server:
        server.on("AUTH", f"{code} 5.7.8 no")
        ended = commit(tm, log_in(server, more), ONE)
        assert_stopped(ended)
        assert ended.outcomes[0].reply.code == code
        assert logins(server) == ["AUTH PLAIN"]


@pytest.mark.parametrize("second", ["535 5.7.8 no", "454 4.7.0 later"])
def test_a11_what_the_second_one_gets_is_the_answer(tm, log_in, second):
    """After a replacement its own reply decides."""
    with logged_in_only(mechanisms=("PLAIN", "LOGIN")) as server:
        server.on("AUTH", "504 no")
        server.on("AUTH", second)
        ended = commit(tm, log_in(server), ONE)
        assert ended.outcomes[0].reply.code == int(second[:3])
        stopped = second.startswith("5")
        assert ended.outcomes[0].action == ("stop_route" if stopped else "defer_route")
        assert logins(server) == ["AUTH PLAIN", "AUTH LOGIN"]


def test_a11_a_server_that_hangs_up_then_is_told_of(tm, log_in):
    """It is temporary, as each connection that ends, and the reason names the way out."""
    with logged_in_only(mechanisms=("PLAIN", "LOGIN")) as server:
        server.on("AUTH", then("504 no", CLOSE))
        ended = commit(tm, log_in(server), ONE)
        assert ended.outcomes[0].action == "defer_route"
        assert "PLAIN (504)" in ended.outcomes[0].reason
        assert "auth=" in ended.outcomes[0].reason


@pytest.mark.parametrize("names", ["PLAIN,", ",PLAIN", "PLAIN,PLAIN", "PLAIN;LOGIN", "PLAIN,NTLM"])
def test_a11_a_list_that_is_none_is_refused(names):
    """A name that is misspelt in a list would be a mechanism that is never tried."""
    with pytest.raises(ConfigurationError) as raised:
        transport_from_url(f"smtp://u:p@mx.example.com?auth={names}")
    assert raised.value.field == "url option auth"


# A16


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "password"
    path.write_text("wrong\n")
    return path


@pytest.fixture
def transport(make_timed):
    def make(server, source, more=""):
        url = f"smtp://{USER}@127.0.0.1:{server.port}?auth_in_clear=yes"
        return make_timed(f"{url}&password_from={source}{more}")

    return make


def fail(transport, times=1):
    for _ in range(times):
        with pytest.raises(AuthenticationFailed):
            transport.open()


def assert_locked(transport, server):
    before = len(server.connections)
    with pytest.raises(TransportError, match=r"not tried again for .* another one") as raised:
        transport.open()
    assert not raised.value.temporary
    assert len(server.connections) == before


@pytest.mark.parametrize("failures", [1, 2, TRIES])
@pytest.mark.parametrize("kind", ["file", "env", "function"])
def test_a16_another_secret_is_another_login(
    transport, clock, secret_file, monkeypatch, kind, failures
):
    """A lock that a person cannot open by doing the right thing."""
    monkeypatch.setenv("TXMAIL_TEST_SECRET", "wrong")
    monkeypatch.setattr(Given, "secret", "wrong")
    source = {"env": "env:TXMAIL_TEST_SECRET", "function": f"{__name__}:given_secret"}
    with logged_in_only() as server:
        tried = transport(server, source.get(kind, f"file:{secret_file}"))
        fail(tried, failures)
        if failures == TRIES:
            assert_locked(tried, server)
        secret_file.write_text(f"{PASSWORD}\nand a second line\n")
        monkeypatch.setenv("TXMAIL_TEST_SECRET", PASSWORD)
        monkeypatch.setattr(Given, "secret", PASSWORD)
        tried.open().close()
        tried.open(fresh=True).close()


def test_a16_the_same_secret_stays_locked(transport, clock, secret_file):
    """What is no other secret, however it is written, opens nothing."""
    with logged_in_only() as server:
        tried = transport(server, f"file:{secret_file}")
        fail(tried, TRIES)
        for text in ("wrong\n", "wrong\r\n", "wrong", "wrong\nmore\n"):
            secret_file.write_text(text)
            clock.now += 60
            assert_locked(tried, server)
        clock.now = START + PERIOD + 1
        fail(tried, TRIES)
        assert_locked(tried, server)


def test_a16_each_secret_has_its_own_tries(transport, clock, secret_file):
    """One that was wrong stays locked while others are tried; the right one always works."""
    with logged_in_only() as server:
        tried = transport(server, f"file:{secret_file}")
        for number in range(5):
            secret_file.write_text(f"wrong{number}")
            fail(tried, TRIES)
            assert_locked(tried, server)
        secret_file.write_text("wrong0")
        assert_locked(tried, server)
        secret_file.write_text(PASSWORD)
        tried.open().close()


def test_a16_the_worker_s_word_for_it_is_not_repeated(transport, secret_file):
    """A secret, right or wrong, is in nothing that is kept about its failures."""
    with logged_in_only() as server:
        tried = transport(server, f"file:{secret_file}")
        secret_file.write_text("a-wrong-secret")
        fail(tried, TRIES)
        assert not has(repr(vars(tried._logins)), "a-wrong-secret")
        with pytest.raises(TransportError) as raised:
            tried.open()
        assert not has(str(raised.value), "a-wrong-secret")


class Given:
    secret = "wrong"
    count = 0


def given_secret():
    return Given.secret


def next_secret():
    Given.count += 1
    return f"token-{Given.count}"


def test_a16_secrets_that_a_program_makes_are_no_end_of_tries(transport, clock, monkeypatch):
    """A token that is another one each time would never be counted: those are counted together."""
    monkeypatch.setattr(Given, "count", 0)
    with logged_in_only(credentials={USER: "token-6"}) as server:
        tried = transport(server, f"{__name__}:next_secret", "&auth=XOAUTH2")
        fail(tried, 5)
        tried.open().close()
        fail(tried_fresh(tried), TRIES_OF_A_PROGRAM)
        assert_locked(tried, server)
        assert len(logins(server)) == 6 + TRIES_OF_A_PROGRAM


def tried_fresh(transport):
    transport._pool.close()
    return transport
