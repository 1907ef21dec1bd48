"""A Postfix of one's own: with folders, a port and a log that are nobody else's.

The tests of the real server and ``benchmarks/commit_cost.py`` run one. It needs Postfix to be
installed, and root, because Postfix does.
"""

from __future__ import annotations

import contextlib
import email
import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

POSTFIX = "/usr/sbin/postfix"

AVAILABLE = Path(POSTFIX).exists() and os.geteuid() == 0
#: why there is none
NEEDS = "a Postfix of one's own needs /usr/sbin/postfix and root"

#: What every instance of ours says; what it is for stands behind it.
MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
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
"""

#: Delivers to two people, into files.
MAILBOXES_CF = (
    MAIN_CF
    + """\
virtual_mailbox_domains = example.com
virtual_mailbox_base = {base}/mail
virtual_mailbox_maps = inline:{ ann@example.com=ann/, bob@example.com=bob/ }
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
"""
)

#: The programs of an instance, none in a chroot. Without ``postlog``, `maillog_file` stays empty.
MASTER_CF = """\
{listener} inet n - n - - smtpd
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
    """An instance below the folder `base`, which has to be open to the user postfix.

    `main_cf` is its configuration; in it ``{base}``, ``{uid}`` and ``{gid}`` stand for the folder
    and the user postfix. `listener` is the address of the only SMTP server, with ``{port}`` for its
    port; without a host it listens where `inet_interfaces` says.
    """

    def __init__(self, base: Path, main_cf: str, *, listener: str = "127.0.0.1:{port}") -> None:
        self.base = base
        self.conf = base / "conf"
        self.port = free_port()
        owner = pwd.getpwnam("postfix")
        for name in ("conf", "queue", "data", "mail"):
            (base / name).mkdir(mode=0o755)
        for name in ("data", "mail"):
            shutil.chown(base / name, owner.pw_uid, owner.pw_gid)
        (base / "data").chmod(0o700)
        values = {"base": str(base), "uid": str(owner.pw_uid), "gid": str(owner.pw_gid)}
        for name, value in values.items():
            main_cf = main_cf.replace(f"{{{name}}}", value)
        (self.conf / "main.cf").write_text(main_cf)
        listener = listener.format(port=self.port)
        (self.conf / "master.cf").write_text(MASTER_CF.format(listener=listener))

    # Running it

    def run(self, command: str) -> None:
        """``postfix start``, ``stop`` or ``reload``; a CalledProcessError if it fails."""
        # No pipes: the daemons keep open what they inherit, and a reader would wait for them.
        subprocess.run(
            [POSTFIX, "-c", str(self.conf), command],
            check=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
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

    # What it has

    def queue(self) -> list[dict[str, Any]]:
        """Its queue, a dictionary a message: what ``postqueue -j`` prints."""
        printed = self._tool("postqueue", "-j")
        return [json.loads(line) for line in printed.splitlines()]

    def flush(self) -> None:
        """Try everything that waits now: ``postqueue -f``."""
        self._tool("postqueue", "-f")

    def delete_all(self) -> None:
        """Forget its queue: ``postsuper -d ALL``."""
        self._tool("postsuper", "-d", "ALL")

    def _tool(self, name: str, *options: str) -> str:
        """What it prints. On stderr comes a warning for each setting that is there twice."""
        command = [str(Path(POSTFIX).with_name(name)), "-c", str(self.conf), *options]
        run = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True)
        return run.stdout

    def queue_files(self) -> list[Path]:
        """The files of its queue, those of messages that are still being handed in too."""
        folders = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt")
        return [
            file
            for folder in folders
            for file in (self.base / "queue" / folder).rglob("*")
            if file.is_file()
        ]

    def log(self) -> str:
        """Its log so far."""
        log = self.base / "log"
        return log.read_text() if log.exists() else ""

    def connections(self) -> int:
        """How many connections its log tells of."""
        return self.log().count(": connect from")

    def mail_of(self, user: str) -> list[email.message.Message]:
        """What was delivered to the Maildir of `user`, where it delivers into files."""
        files = (self.base / "mail" / user / "new").glob("*")
        return [email.message_from_bytes(file.read_bytes()) for file in files]


@contextlib.contextmanager
def running_postfix(
    main_cf: str,
    *,
    listener: str = "127.0.0.1:{port}",
    prepare: Callable[[Postfix], None] = lambda postfix: None,
) -> Iterator[Postfix]:
    """A `Postfix` that runs, and is gone afterwards. `prepare` is called before it is started."""
    # Not below pytest's own folder, which is closed to the user postfix.
    base = Path(tempfile.mkdtemp(prefix="txmail-postfix-"))
    try:
        base.chmod(0o755)
        instance = Postfix(base, main_cf, listener=listener)
        prepare(instance)
        try:
            instance.start()
            yield instance
        finally:
            if (base / "queue" / "pid" / "master.pid").exists():
                instance.run("stop")
    finally:
        shutil.rmtree(base)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def within(seconds: float, condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true: another program tells us nothing, so it has to be asked."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
