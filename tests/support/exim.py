"""An Exim of one's own: with folders, a port and a log that are nobody else's.

It needs root, because Exim gives up rights that it has to have, and the user that it was built for
(Debian-exim). ``TXMAIL_EXIM`` names its program, where none is on the path: the one of a package
that was unpacked (``dpkg -x``) will do, it need not be installed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from postfix import free_port, within

USER = "Debian-exim"
EXIM = os.environ.get("TXMAIL_EXIM") or shutil.which("exim4")


def _missing() -> str:
    if EXIM is None or not Path(EXIM).exists():
        return "an Exim is needed: exim4 on the path, or its program in TXMAIL_EXIM"
    if os.geteuid() != 0:
        return "an Exim of one's own needs root"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return f"an Exim of Debian needs the user {USER}"
    return ""


#: why there is none; empty if there is
MISSING = _missing()

#: Takes all mail but that to ``refused*`` and that of ``refused*``, and throws it away.
CONFIGURATION = """\
exim_user = {user}
exim_group = {group}
spool_directory = {base}/spool
log_file_path = {base}/log/%slog
pid_file_path = {base}/exim.pid
primary_hostname = mx.test
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
tls_advertise_hosts =
keep_environment =
add_environment = PATH=/usr/bin
rfc1413_query_timeout = 0s
host_lookup =
queue_only = true
smtp_accept_max = 200
smtp_accept_max_per_host = 200
log_selector = +smtp_protocol_error +smtp_syntax_error +smtp_connection
acl_smtp_mail = mail
acl_smtp_rcpt = recipient
acl_smtp_data = content
{more}
begin acl

mail:
  deny senders = ^refused
       message = 5.7.1 this sender is refused
  accept

recipient:
  deny local_parts = ^refused
       message = 5.1.1 no such user
  accept

content:
  deny condition = ${{if match{{$h_Subject:}}{{refused}}}}
       message = 5.7.1 this content is refused
  accept

begin routers

nowhere:
  driver = accept
  transport = nowhere

begin transports

nowhere:
  driver = appendfile
  file = /dev/null
"""


class Exim:
    """An instance below the folder `base`, which has to be open to its user."""

    def __init__(self, base: Path, more: str) -> None:
        self.base = base
        self.port = free_port()
        owner = pwd.getpwnam(USER)
        for name in ("spool", "log"):
            (base / name).mkdir(mode=0o750)
            shutil.chown(base / name, owner.pw_uid, owner.pw_gid)
        self._configuration = base / "exim.conf"
        self._configuration.write_text(
            CONFIGURATION.format(
                base=base, port=self.port, user=owner.pw_uid, group=owner.pw_gid, more=more
            )
        )
        self._configuration.chmod(0o644)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in the foreground and wait until it answers."""
        self._process = subprocess.Popen(
            [str(EXIM), "-C", str(self._configuration), "-bdf"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        within(20, self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connected:
                return connected.recv(4).startswith(b"220")
        except OSError:
            return False

    def stop(self) -> None:
        """End it; those that serve a connection end with theirs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Its log so far."""
        log = self.base / "log" / "mainlog"
        return log.read_text() if log.exists() else ""

    def message_ids(self) -> list[str]:
        """The Message-IDs of what it has accepted, in order."""
        lines = [line for line in self.log().splitlines() if " <= " in line]
        return ["<" + line.partition(" id=")[2].split()[0] + ">" for line in lines]


@contextlib.contextmanager
def running_exim(more: str = "") -> Iterator[Exim]:
    """An `Exim` that runs, and is gone afterwards; `more` is added to its configuration."""
    # Not below pytest's own folder, which is closed to its user.
    base = Path(tempfile.mkdtemp(prefix="txmail-exim-"))
    try:
        base.chmod(0o755)
        instance = Exim(base, more)
        try:
            instance.start()
            yield instance
        finally:
            instance.stop()
    finally:
        shutil.rmtree(base)
