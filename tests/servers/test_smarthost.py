"""The smarthost route of docs/smarthost: its main.cf in a real Postfix, with a provider of ours.

The file is used as it is. Behind it stands what has to differ for a second Postfix on a machine:
its folders, its log, the provider, and the authority that vouches for the provider.
"""

from __future__ import annotations

import base64
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from databases import ZODB_KIND, Failure, Recorder
from letters import SENDER, letter, statuses, subjects
from postfix import AVAILABLE, NEEDS, free_port, running_postfix, within

from txmail import Envelope
from txmail.message.mime.gate import MAX_CONTENT
from txmail.testing import ScriptedServer

OPENSSL = shutil.which("openssl")
HAS_SASL = any(Path("/usr").glob("lib*/**/sasl2/libplain.so*"))

pytestmark = [
    pytest.mark.skipif(not AVAILABLE, reason=NEEDS),
    pytest.mark.skipif(not HAS_SASL, reason="the PLAIN mechanism (libsasl2-modules) is missing"),
    pytest.mark.skipif(OPENSSL is None, reason="no openssl command to make certificates with"),
]

MAIN_CF = Path(__file__).parents[2] / "docs" / "smarthost" / "main.cf"
APPENDED = """
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = {base}/log
maillog_file_prefixes = {base}
"""
USER, PASSWORD = "shop", "a secret of the shop"


class Authority:
    """A certificate authority in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.certificate = folder / "ca.pem"
        _openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *(
                "-subj",
                "/CN=An authority for tests",
                "-addext",
                "basicConstraints=critical,CA:TRUE",
            ),
            *("-keyout", folder / "ca.key", "-out", self.certificate),
        )

    def context_for(self, name: str) -> ssl.SSLContext:
        """TLS as a server, with a certificate for the host `name`."""
        request, key, signed = (self.folder / f"{name}.{end}" for end in ("csr", "key", "pem"))
        _openssl(
            *("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}", "-keyout", key, "-out", request),
        )
        _openssl(
            *("x509", "-req", "-days", "2", "-copy_extensions", "copyall", "-in", request),
            *("-CA", self.certificate, "-CAkey", self.folder / "ca.key", "-out", signed),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(signed, key)
        return context


def _openssl(*arguments: object) -> None:
    command = [str(OPENSSL), *(str(argument) for argument in arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates") / "known")


@pytest.fixture(scope="module")
def provider_port():
    return free_port()


@pytest.fixture(scope="module")
def provider_context(authority):
    return authority.context_for("localhost")


@pytest.fixture
def provider(provider_port, provider_context):
    """Where all mail goes: TLS and a password, on the port that `relayhost` has."""
    credentials = {USER: PASSWORD}
    with ScriptedServer(
        port=provider_port, tls_context=provider_context, credentials=credentials
    ) as server:
        yield server


@pytest.fixture(scope="module")
def smarthost(authority, provider_port):
    """The Postfix of docs/smarthost."""
    relayhost = f"[localhost]:{provider_port}"

    def prepare(postfix):
        shutil.copy(authority.certificate, postfix.base / "ca.pem")
        passwords = postfix.conf / "sasl_passwd"
        passwords.touch(mode=0o600)
        passwords.write_text(f"{relayhost} {USER}:{PASSWORD}\n")

    appended = f"{APPENDED}relayhost = {relayhost}\nsmtp_tls_CAfile = {{base}}/ca.pem\n"
    # Without a host: where it listens is for main.cf to say.
    with running_postfix(
        MAIN_CF.read_text() + appended, listener="{port}", prepare=prepare
    ) as instance:
        yield instance


@pytest.fixture
def mailer(smarthost, make_mailer):
    """A mailer for the smarthost, as the page says it: no option is needed on loopback."""
    yield make_mailer(smarthost.url.replace("127.0.0.1", "localhost"))
    # What a test that failed has left must not arrive in the next.
    smarthost.delete_all()


def reasons(smarthost) -> list[str]:
    """Why the recipients wait that are in its deferred queue."""
    return [
        recipient["delay_reason"]
        for entry in smarthost.queue()
        if entry["queue_name"] == "deferred"
        for recipient in entry["recipients"]
    ]


def has_waiting(smarthost) -> bool:
    """True if exactly one message waits, and it is known why."""
    return len(smarthost.queue()) == len(reasons(smarthost)) == 1


def wait_until_sent(smarthost, provider) -> None:
    """Wait for a message at the provider, and until nothing is left that could send it again."""
    provider.wait_for(lambda: provider.messages)
    within(20, lambda: not smarthost.queue())


def verbs(server) -> set[str]:
    return {line.split()[0] for line in server.commands}


def test_a_committed_mail_reaches_the_provider_over_verified_tls_with_a_password(
    tm, smarthost, provider, mailer
):
    # As providers do, it offers the mechanisms that send the password itself, under TLS only.
    under_tls = "250 mx.example.com\nPIPELINING\n8BITMIME\nENHANCEDSTATUSCODES\nAUTH PLAIN LOGIN"
    provider.on("EHLO", under_tls, after=1)
    with tm:
        message_id = mailer.send(letter("to the provider", "ann@example.com", "bob@example.org"))
    assert statuses(mailer.last_outcomes) == ["accepted", "accepted"]
    wait_until_sent(smarthost, provider)
    (received,) = provider.messages
    assert received.sender == SENDER
    assert received.recipients == ("ann@example.com", "bob@example.org")
    (connection,) = provider.connections
    assert connection.tls
    said = [line.split()[0] for line in connection.commands]
    assert said[: said.index("MAIL")] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]
    secret = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
    assert f"AUTH PLAIN {secret}" in connection.commands
    assert any(who == "S" and octets.startswith(b"235 ") for _, who, octets in connection.octets)
    log = smarthost.log()
    assert "Verified TLS connection established to localhost" in log
    assert f"message-id={message_id}" in log
    assert PASSWORD not in log


def test_the_provider_gets_the_octets_that_were_rendered(tm, smarthost, provider, mailer):
    content = (
        b"From: app@example.com\r\nTo: ann\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\n"
        b"Message-ID: <octets@example.com>\r\nSubject:   odd\r\n  spacing \r\n\r\n.\r\n..\r\n \r\n"
    )
    with tm:
        mailer.send(Envelope(SENDER, ("ann@example.com",), content))
    wait_until_sent(smarthost, provider)
    assert provider.messages[0].content.endswith(b"\r\n" + content)


def test_while_the_provider_is_down_commits_succeed_and_their_mail_waits(
    tm, smarthost, provider, mailer, make_database
):
    database = make_database(ZODB_KIND)
    provider.stop()
    with tm:
        database.write("order")
        mailer.send(letter("patient"))
    assert database.values() == ["order"]
    assert statuses(mailer.last_outcomes) == ["accepted"]
    within(20, lambda: has_waiting(smarthost))
    assert "onnection refused" in reasons(smarthost)[0]
    assert provider.messages == []

    provider.start()
    smarthost.flush()
    wait_until_sent(smarthost, provider)
    assert subjects(provider) == ["patient"]


def strange_authority(folder, authority):
    return Authority(folder / "strange").context_for("localhost")


def wrong_name(folder, authority):
    return authority.context_for("mx.example.net")


def no_tls(folder, authority):
    return None


@pytest.mark.parametrize(
    ("make_context", "reason", "logged"),
    [
        (strange_authority, "certificate not verified", "untrusted issuer"),
        (wrong_name, "certificate not verified", "hostname mismatch"),
        (no_tls, "TLS is required", "TLS is required"),
    ],
)
def test_who_cannot_show_the_providers_certificate_gets_neither_mail_nor_password(
    tm, tmp_path, authority, smarthost, provider, mailer, make_context, reason, logged
):
    provider.stop()
    log_before = len(smarthost.log())
    with ScriptedServer(
        port=provider.port,
        credentials={USER: PASSWORD},
        tls_context=make_context(tmp_path, authority),
    ) as impostor:
        with tm:
            mailer.send(letter("confidential"))
        within(20, lambda: has_waiting(smarthost))
        assert reason in reasons(smarthost)[0]
        assert logged in smarthost.log()[log_before:]
        assert {"EHLO"} <= verbs(impostor) <= {"EHLO", "STARTTLS", "QUIT"}
        assert impostor.messages == []

    provider.start()
    smarthost.flush()
    wait_until_sent(smarthost, provider)
    assert subjects(provider) == ["confidential"]


def test_a_password_that_the_provider_does_not_know_makes_mail_wait(
    tm, smarthost, provider, provider_context, mailer
):
    provider.stop()
    with ScriptedServer(
        port=provider.port, tls_context=provider_context, credentials={USER: "another one"}
    ) as changed:
        with tm:
            mailer.send(letter("after the password was changed"))
        within(20, lambda: has_waiting(smarthost))
        assert "SASL authentication failed" in reasons(smarthost)[0]
        assert changed.messages == []
    provider.start()
    smarthost.flush()
    wait_until_sent(smarthost, provider)
    assert subjects(provider) == ["after the password was changed"]


def test_what_the_provider_refuses_for_good_goes_back_to_the_envelope_sender(
    tm, smarthost, provider, mailer
):
    provider.refuse("nobody@example.com", "550 5.1.1 no such user")
    with tm:
        mailer.send(letter("to nobody", "nobody@example.com"))
    assert statuses(mailer.last_outcomes) == ["accepted"]
    wait_until_sent(smarthost, provider)
    (bounce,) = provider.messages
    assert (bounce.sender, bounce.recipients) == ("", (SENDER,))
    assert b"no such user" in bounce.content


def test_an_aborted_transaction_leaves_nothing_in_postfix(tm, smarthost, provider, mailer):
    # The preflight has told Postfix of sender and recipient when another data manager says no.
    connections = smarthost.connections()
    tm.begin().join(Recorder("somebody", fails="vote"))
    aborted = mailer.send(letter("aborted"))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    within(20, lambda: smarthost.connections() == connections + 1)
    assert smarthost.queue() == []
    # Postfix keeps a file until it hears that nothing will follow.
    assert smarthost.queue_files()
    mailer.close()
    within(20, lambda: not smarthost.queue_files())

    with tm:
        mailer.send(letter("committed"))
    wait_until_sent(smarthost, provider)
    assert subjects(provider) == ["committed"]
    assert aborted not in smarthost.log()


def test_the_largest_message_of_txmail_fits(tm, smarthost, provider, provider_context, mailer):
    content = (
        b"From: app@example.com\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\n"
        b"Message-ID: <large@example.com>\r\n\r\n"
    )
    rest = MAX_CONTENT - len(content)
    content += (b"x" * 76 + b"\r\n") * (rest // 78 - 1)
    content += b"x" * (MAX_CONTENT - len(content) - 2) + b"\r\n"
    assert len(content) == MAX_CONTENT
    provider.stop()
    with ScriptedServer(
        port=provider.port, tls_context=provider_context, extensions=("PIPELINING", "8BITMIME")
    ) as without_a_limit:
        with tm:
            mailer.send(Envelope(SENDER, ("ann@example.com",), content))
        assert statuses(mailer.last_outcomes) == ["accepted"]
        without_a_limit.wait_for(lambda: without_a_limit.messages, 30)
        assert without_a_limit.messages[0].content.endswith(content)
        within(20, lambda: not smarthost.queue())


def test_it_listens_on_loopback_only(smarthost):
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, address, _, state = line.split()[:4]
            host, port = address.split(":")
            if state == "0A" and int(port, 16) == smarthost.port:
                listening.add(host)
    ipv4, ipv6 = "0100007F", "00000000000000000000000001000000"
    assert {ipv4} <= listening <= {ipv4, ipv6}
