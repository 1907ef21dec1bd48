"""Hostile servers and networks: who gets the password, and who may claim to be the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import ssl
import stat

import pytest
from commits import commit, note

from txmail import mailer_from_settings, transport_from_url
from txmail.cli.catch import _folder
from txmail.cli.exits import CannotRun
from txmail.exceptions import ConfigurationError, TransportError
from txmail.queue.database.sqlite_path import guard
from txmail.secret import Secret
from txmail.smtp.auth import MECHANISMS, AuthenticationFailed, mechanism_of
from txmail.smtp.options import Options
from txmail.smtp.stream import Stream
from txmail.smtp.tls import TlsMode
from txmail.testing import ScriptedServer
from txmail.transports.smtp import SmtpTransport

USER, PASSWORD = "ann", "pencil-in-clear"
ONE = note("one")


def refused(call, *arguments):
    with pytest.raises(ConfigurationError) as raised:
        call(*arguments)
    assert PASSWORD not in str(raised.value)
    return raised.value


# S1


@pytest.mark.representative(every=4)
@pytest.mark.parametrize(
    "host", ["mx.example.com", "mail_server", "localhost.example.com", "192.0.2.1", "[2001:db8::1]"]
)
@pytest.mark.parametrize("tls", ["opportunistic", "off"])
@pytest.mark.parametrize("more", ["", "&auth=SCRAM-SHA-256", "&auth_in_clear=no"])
def test_s1_a_user_is_refused_where_the_server_is_not_verified(host, tls, more):
    """Credentials sent to a server that has proved nothing (CWE-295)."""
    url = f"smtp://{USER}:{PASSWORD}@{host}:587?tls={tls}{more}"
    assert "tls=required" in str(refused(transport_from_url, url))
    settings = {"mail.url": f"smtp://{host}?tls={tls}{more}"}
    settings |= {"mail.username": USER, "mail.password": PASSWORD}
    assert "auth_in_clear" in str(refused(mailer_from_settings, settings))


@pytest.mark.parametrize(
    "url",
    [
        "smtp://ann:x@mx.example.com",
        "smtp://ann:x@mx.example.com?tls=required",
        "smtps://ann:x@mx.example.com",
        "smtp://ann:x@127.0.0.1?tls=opportunistic",
        "smtp://ann:x@[::ffff:127.0.0.1]?tls=opportunistic",
        "smtp://ann:x@localhost.?tls=opportunistic",
        "smtp://ann:x@mx.example.com?tls=opportunistic&auth_in_clear=yes",
        "smtp://mx.example.com?tls=opportunistic",
    ],
)
def test_s1_where_it_is_verified_or_local_or_said_it_is_not(url):
    """The other half of the rule: what is safe, or asked for, goes on working."""
    transport_from_url(url).close()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_s1_a_stranger_gets_no_password_whatever_made_the_options(
    authority, monkeypatch, mechanism
):
    """The last look, at the connection itself: a name that is local may lead elsewhere."""
    monkeypatch.setattr(Stream, "loopback", property(lambda self: False))
    context = authority.server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with ScriptedServer(
        tls_context=context, credentials={USER: PASSWORD}, mechanisms=(mechanism,)
    ) as server:
        options = Options(
            *("127.0.0.1", server.port),
            tls=TlsMode.OPPORTUNISTIC,
            user=USER,
            password=Secret(PASSWORD),
            auth=mechanism,
        )
        transport = SmtpTransport(options)
        with pytest.raises(TransportError, match="has not proved who it is") as raised:
            transport.open()
        assert not raised.value.temporary
        server.wait_closed()
        assert not any(line.startswith("AUTH") for line in server.commands)


def test_s1_on_this_machine_any_tls_will_do(authority, tm, make_mailer):
    """Nobody is in between on loopback: a self-signed certificate there is no danger."""
    with ScriptedServer(
        tls_context=authority.server("DNS:elsewhere.example"),
        credentials={USER: PASSWORD},
        login_required=True,
    ) as server:
        url = f"smtp://{USER}:{PASSWORD}@127.0.0.1:{server.port}?tls=opportunistic"
        assert commit(tm, make_mailer(url), ONE).statuses == ["accepted"]


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    "urls",
    [
        ["smtp://mx1.example.com", "smtp://mx2.example.com"],
        ["smtp://bob:y@mx1.example.com", "smtp://mx2.example.com"],
        ["smtp://mx1.example.com", "smtp://bob:y@mx2.example.com"],
        ["smtp://localhost?auth_in_clear=yes", "smtps://mx2.example.com"],
        ["smtps://mx.example.com", "sendmail:", "smtps://192.0.2.1"],
        "smtp://mx1.example.com smtp://mx2.example.com",
        "smtp://mx1.example.com\n    smtp://mx2.example.com\n",
    ],
)
@pytest.mark.parametrize("prefix", ["mail.", "mail.route.partner."])
def test_s1_one_user_does_not_log_in_at_several_hosts(tmp_path, urls, prefix):
    """A password that goes to whoever is next in a list."""
    settings = {"mail.url": "memory:", "mail.queue_url": f"sqlite:///{tmp_path}/mail.db"}
    settings |= {f"{prefix}url": urls}
    settings |= {f"{prefix}username": USER, f"{prefix}password": PASSWORD}
    error = refused(mailer_from_settings, settings)
    assert error.field == f"{prefix}username"
    assert "name the user in each URL" in str(error)


@pytest.mark.parametrize(
    "urls",
    [
        "smtps://mx.example.com smtp://MX.example.com.:587",
        "smtp://mx.example.com sendmail:",
        "smtp://mx.example.com memory:",
    ],
)
def test_s1_one_host_may_have_several_urls(urls):
    """Another port of the host, or a way out that has no password, is no other server."""
    settings = {"mail.url": urls, "mail.username": USER, "mail.password": PASSWORD}
    mailer_from_settings(settings).close()


def test_s1_users_may_be_named_in_each_url():
    """What the error asks for."""
    urls = f"smtp://ann:{PASSWORD}@mx1.example.com smtp://bob:y@mx2.example.com smtp://mx3.example"
    routes = mailer_from_settings({"mail.url": urls})._direct.transport.routes
    assert [route.options.user for route in routes] == ["ann", "bob", ""]


# S11


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("way", ["starttls", "implicit"])
@pytest.mark.parametrize(
    ("names", "subject"),
    [
        ("DNS:mx.example.com", "/CN=localhost"),
        ("IP:192.0.2.1", "/CN=localhost"),
        ("IP:127.0.0.1", "/CN=localhost"),
        ("email:postmaster@localhost", "/CN=localhost"),
        ("URI:smtp://localhost/", "/CN=localhost"),
        ("dirName:name", "/CN=localhost"),
        ("", "/CN=localhost"),
        ("", "/O=Example/CN=other/CN=localhost"),
        ("DNS:local*", "/CN=localhost"),
        ("DNS:*", "/CN=localhost"),
        ("DNS:localhost.example.com", "/CN=localhost"),
    ],
)
def test_s11_the_subject_of_a_certificate_is_no_host_name(
    authority, tm, make_mailer, names, subject, way
):
    """A name taken from where RFC 9525 does not allow one."""
    more = {}
    if names.startswith("dirName"):
        more = {"subjectAltName": "dirName:name\n[name]\nCN = localhost"}
    context = authority.server(names, subject=subject, **more)
    assert_not_verified(context, authority, tm, make_mailer, way, "localhost")


def test_s11_an_address_is_no_name(authority, tm, make_mailer):
    """An address is looked for among addresses: ``DNS:127.0.0.1`` is none, nor is the subject."""
    context = authority.server("DNS:127.0.0.1", subject="/CN=127.0.0.1")
    assert_not_verified(context, authority, tm, make_mailer, "starttls", "127.0.0.1")


def assert_not_verified(context, authority, tm, make_mailer, way, host):
    implicit = way == "implicit"
    with ScriptedServer(tls_context=context, implicit_tls=implicit) as server:
        scheme, more = ("smtps", "") if implicit else ("smtp", "&tls=required")
        url = f"{scheme}://{host}:{server.port}?cafile={authority.cafile}{more}"
        ended = commit(tm, make_mailer(url), ONE)
        assert [(str(o.status), str(o.action)) for o in ended.outcomes] == [
            ("unsent", "stop_route")
        ]
        assert "mismatch" in ended.outcomes[0].reason


@pytest.mark.parametrize("names", ["DNS:localhost", "DNS:mx.example.com,DNS:LOCALHOST"])
def test_s11_a_subject_alternative_name_verifies_whatever_the_subject_is(
    authority, tm, make_mailer, names
):
    """The other half: the names that count are enough."""
    with ScriptedServer(tls_context=authority.server(names, subject="/CN=other")) as server:
        url = f"smtp://localhost:{server.port}?tls=required&cafile={authority.cafile}"
        assert commit(tm, make_mailer(url), ONE).statuses == ["accepted"]


# S9

UMASKS = [0o000, 0o002, 0o077, 0o277, 0o777]


def by_transport(path):
    transport_from_url(f"file://{path}").open().close()


def by_catch(path):
    _folder(path)


def by_queue(path):
    guard(os.path.join(path, "mail.db"))


WAYS = [by_transport, by_catch, by_queue]


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("mask", UMASKS)
@pytest.mark.parametrize("way", WAYS)
def test_s9_every_folder_that_is_made_is_ours_alone_whatever_the_umask(tmp_path, umask, way, mask):
    """Parents made with the mode that the umask leaves (CWE-732)."""
    umask(mask)
    way(str(tmp_path / "a" / "b" / "mails"))
    for path in ("a", "a/b", "a/b/mails"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("made", "modes"),
    [
        ("mails", [0o777]),
        ("mails", [0o773]),
        ("shared/mails", [0o777]),
        ("shared/mails", [0o707, 0o700]),
        ("shared/a/mails", [0o777, 0o700, 0o700]),
        ("shared/a/mails", [0o755, 0o757]),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_s9_a_folder_below_one_that_anybody_may_write_to_is_refused(tmp_path, way, made, modes):
    """Whoever may write above it can put a folder of his own in its place."""
    here, bad = tmp_path, None
    for name, mode in zip(made.split("/"), modes, strict=False):
        here /= name
        here.mkdir()
        here.chmod(mode)
        bad = here if mode & stat.S_IWOTH and bad is None else bad
    with pytest.raises((TransportError, CannotRun, ConfigurationError)) as raised:
        way(str(tmp_path / made))
    assert f"{bad}" in str(raised.value)
    assert "anybody may write" in str(raised.value)
    for folder in (tmp_path / made, bad):
        assert not folder.exists() or list(folder.glob("*.*")) == []


@pytest.mark.parametrize("mode", [0o1777, 0o775, 0o755, 0o700])
@pytest.mark.parametrize("way", WAYS)
def test_s9_a_sticky_folder_or_one_of_a_group_will_do(tmp_path, way, mode):
    """The other half: below /tmp nobody can exchange what is ours."""
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(mode)
    way(str(above / "mails"))
    assert stat.S_IMODE((above / "mails").stat().st_mode) == 0o700


def test_s9_a_link_above_is_looked_behind(tmp_path):
    """A name may lead to a folder of everybody's."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(TransportError, match="anybody may write"):
        by_transport(str(tmp_path / "link" / "mails"))


@pytest.mark.parametrize("mask", UMASKS[:3])
def test_s9_the_files_are_ours_alone(tmp_path, umask, tm, make_mailer, mask):
    """The same, of what is in the folder."""
    umask(mask)
    mailer = make_mailer(f"file://{tmp_path}/a/mails")
    assert commit(tm, mailer, ONE).statuses == ["accepted"]
    (kept,) = (tmp_path / "a" / "mails").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


# S14


def scram(first="{r},{s},{i}", final="{v}", binding=None):
    """An exchange with a server that knows the password and writes these messages; True if it
    ended in a login."""
    name = "SCRAM-SHA-256-PLUS" if binding else "SCRAM-SHA-256"
    ours = mechanism_of(name, USER, lambda: PASSWORD, binding)
    opening = ours.first()
    bare = opening[opening.index(b"n=") :]
    salt = b"salt for tests"
    parts = {
        "r": f"r={bare.partition(b',r=')[2].decode()}more",
        "s": f"s={base64.b64encode(salt).decode()}",
        "i": "i=4096",
    }
    challenge = first.format(**parts).encode()
    answer = ours.answer(challenge)
    signed = b",".join((bare, challenge, answer.rpartition(b",p=")[0]))
    salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, 4096)
    key = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
    ours.answer(final.format(v=f"v={base64.b64encode(key).decode()}").encode())
    ours.finish()
    return True


@pytest.mark.parametrize("binding", [None, ("tls-unique", b"a connection")])
@pytest.mark.parametrize(
    ("first", "final"),
    [
        ("m=ext,{r},{s},{i}", "{v}"),
        ("{r},m=ext,{s},{i}", "{v}"),
        ("{r},{s},{i},m=ext", "{v}"),
        ("{r},{s},{i},x=1,m=,y=2", "{v}"),
        ("{r},{s},{i}", "m=ext,{v}"),
        ("{r},{s},{i}", "{v},m=ext"),
        ("{r},{s},{i}", "{v},x=1,m=ext=1"),
    ],
)
def test_s14_a_scram_extension_that_is_mandatory_ends_the_login(first, final, binding):
    """Something that the server says one must understand, passed over (RFC 5802 5.1, ``m=``)."""
    with pytest.raises(AuthenticationFailed, match=r"extension|not valid"):
        scram(first, final, binding)


@pytest.mark.parametrize(
    ("first", "final"),
    [
        ("{s},{r},{i}", "{v}"),
        ("{r},{s},{i},{i}", "{v}"),
        ("{r},{s},{i},r=other", "{v}"),
        ("x=1,{r},{s},{i}", "{v}"),
        ("{r},{s},{i},", "{v}"),
        ("{r},{s},{i},1=x", "{v}"),
        ("{r},{s},{i},x", "{v}"),
        ("{r},{s},{i}", "x=1,{v}"),
        ("{r},{s},{i}", "{v},{v}"),
        ("{r},{s},{i}", "{v},e=other-error"),
        ("{r},{s},{i}", "{v},"),
        ("{r},{s},{i}", ""),
        ("{r},{s}", "{v}"),
    ],
)
def test_s14_a_scram_message_is_as_its_grammar_says(first, final):
    """The neighbours: what stands in another order, twice, or in no form at all (RFC 5802 7)."""
    with pytest.raises(AuthenticationFailed):
        scram(first, final)


@pytest.mark.parametrize(
    ("first", "final"),
    [
        ("{r},{s},{i}", "{v}"),
        ("{r},{s},{i},x=1", "{v},y=a=b"),
        ("{r},{s},{i},M=1", "{v},a=b,b=c"),
    ],
)
def test_s14_an_extension_that_is_optional_is_passed_over(first, final):
    """The other half: attributes that nobody knows are no reason to fail (RFC 5802 5.1)."""
    assert scram(first, final)
