"""A real Postfix: it takes the mail of committed transactions and delivers it into files."""

from __future__ import annotations

import email
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from email.header import decode_header, make_header
from pathlib import Path

import pytest
from databases import SQLITE, ZODB_KIND
from letters import letter, statuses

from txmail import Message
from txmail.exceptions import DeliveryRefused

POSTFIX = "/usr/sbin/postfix"

pytestmark = pytest.mark.skipif(
    not Path(POSTFIX).exists() or os.geteuid() != 0,
    reason="a Postfix of one's own needs /usr/sbin/postfix and root",
)

MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
command_directory = /usr/sbin
daemon_directory = {daemons}
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_dns_support_level = disabled
alias_maps =
alias_database =
maillog_file = {base}/log
maillog_file_prefixes = {base}
virtual_mailbox_domains = example.com
virtual_mailbox_base = {base}/mail
virtual_mailbox_maps = inline:{{ ann@example.com=ann/, bob@example.com=bob/ }}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
"""

MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """An instance with folders and a port of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.conf = base / "conf"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        owner = pwd.getpwnam("postfix")
        for name in ("conf", "queue", "data", "mail"):
            (base / name).mkdir(mode=0o755)
        for name in ("data", "mail"):
            shutil.chown(base / name, owner.pw_uid, owner.pw_gid)
        (base / "data").chmod(0o700)
        places = ("/usr/lib/postfix/sbin", "/usr/libexec/postfix")
        daemons = next((place for place in places if Path(place).is_dir()), places[0])
        values = {
            "base": base,
            "daemons": daemons,
            "uid": owner.pw_uid,
            "gid": owner.pw_gid,
            "port": self.port,
        }
        (self.conf / "main.cf").write_text(MAIN_CF.format(**values))
        (self.conf / "master.cf").write_text(MASTER_CF.format(**values))

    def run(self, command: str) -> None:
        # The real stdin and stdout: Postfix keeps what it inherits open.
        subprocess.run(
            [POSTFIX, "-c", str(self.conf), command],
            check=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def start(self) -> None:
        self.run("start")
        within(20, self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connected:
                return connected.recv(4).startswith(b"220")
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    def mail_of(self, user: str) -> list[email.message.Message]:
        """What was delivered to the Maildir of `user`."""
        files = (self.base / "mail" / user / "new").glob("*")
        return [email.message_from_bytes(file.read_bytes()) for file in files]

    def connections(self) -> int:
        """How many connections its log tells of."""
        log = self.base / "log"
        return log.read_text().count(": connect from") if log.exists() else 0


def within(seconds, condition):
    """Wait until `condition()` is true: another program tells us nothing, so it has to be asked."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def postfix():
    # Not below pytest's own folder, which is closed to the user postfix.
    base = Path(tempfile.mkdtemp(prefix="txmail-postfix-"))
    base.chmod(0o755)
    instance = Postfix(base)
    try:
        instance.start()
        yield instance
    finally:
        instance.run("stop")
        shutil.rmtree(base)


@pytest.fixture
def postfix_mailer(postfix, make_mailer):
    return make_mailer(postfix.url)


def delivered(postfix, user, subject):
    return [m for m in postfix.mail_of(user) if m["Subject"] == subject]


def test_postfix_delivers_the_mail_of_a_committed_transaction(
    tm, postfix, postfix_mailer, make_database
):
    database = make_database(ZODB_KIND)
    message = Message(
        "Grüße",
        ["ann@example.com"],
        body=".\n..two dots\nGrüße\n.",
        sender="app@example.com",
        bcc=["bob@example.com"],
    )
    with tm:
        database.write("order")
        message_id = postfix_mailer.send(message)
    assert database.values() == ["order"]
    assert statuses(postfix_mailer.last_outcomes) == ["accepted"] * 2
    within(20, lambda: postfix.mail_of("ann") and postfix.mail_of("bob"))
    for user in ("ann", "bob"):
        (received,) = [m for m in postfix.mail_of(user) if m["Message-ID"] == message_id]
        assert str(make_header(decode_header(received["Subject"]))) == "Grüße"
        assert received["Return-Path"] == "<app@example.com>"
        assert received["Bcc"] is None
        text = received.get_payload(decode=True).decode()
        assert text.splitlines() == [".", "..two dots", "Grüße", "."]


def test_postfix_gets_nothing_of_an_aborted_transaction(tm, postfix, postfix_mailer):
    tm.begin()
    postfix_mailer.send(letter("aborted"))
    tm.abort()
    with tm:
        postfix_mailer.send(letter("after the abort"))
    within(20, lambda: delivered(postfix, "ann", "after the abort"))
    assert delivered(postfix, "ann", "aborted") == []


def test_a_recipient_that_postfix_refuses_aborts_everything(
    tm, postfix, postfix_mailer, make_database
):
    database = make_database(SQLITE)
    tm.begin()
    database.write("order")
    for number in range(10):
        name = "nobody" if number == 4 else "ann"
        postfix_mailer.send(letter("refused together", f"{name}@example.com"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    tm.abort()
    assert statuses(caught.value.outcomes) == ["unsent"] * 4 + ["failed"] + ["unsent"] * 5
    assert caught.value.outcomes[4].reply.code == 550
    assert database.values() == []
    with tm:
        postfix_mailer.send(letter("after the refusal"))
    within(20, lambda: delivered(postfix, "ann", "after the refusal"))
    assert delivered(postfix, "ann", "refused together") == []


def test_fifty_mails_in_one_transaction_and_in_fifty_take_one_connection(
    tm, postfix, postfix_mailer
):
    before = postfix.connections()
    with tm:
        for _ in range(50):
            postfix_mailer.send(letter("bulk"))
    for _ in range(50):
        with tm:
            postfix_mailer.send(letter("one by one"))
    within(30, lambda: len(delivered(postfix, "ann", "bulk")) == 50)
    within(30, lambda: len(delivered(postfix, "ann", "one by one")) == 50)
    assert postfix.connections() == before + 1
