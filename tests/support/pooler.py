"""A real PgBouncer before a PostgreSQL, in transaction mode."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

_CONFIGURATION = """\
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 4
server_round_robin = 1
logfile = {folder}/log
pidfile = {folder}/pid
"""


@contextlib.contextmanager
def pgbouncer(url: str, mode: str = "transaction") -> Iterator[str]:
    """The URL of the database at `url` behind a PgBouncer. Skips where there is none."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    parsed = sa.make_url(url)
    folder = Path(tempfile.mkdtemp(prefix="txm"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = free.getsockname()[1]
    (folder / "ini").write_text(
        _CONFIGURATION.format(
            host=parsed.query.get("host") or parsed.host,
            port=parsed.port or 5432,
            user=parsed.username or "postgres",
            listen=listen,
            folder=folder,
            mode=mode,
        )
    )
    folder.chmod(0o777)
    # It refuses to run as root, and nobody but the server's user gets at its socket.
    host = parsed.query.get("host") or "/"
    other = {"user": os.stat(host).st_uid or 65534} if os.geteuid() == 0 else {}
    process = subprocess.Popen(
        [program, str(folder / "ini")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **other,
    )
    try:
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listen)):
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, "pgbouncer does not listen"
            time.sleep(0.02)
        open_ = parsed.set(host="127.0.0.1", port=listen, query={}, username="ann", password="x")
        yield open_.render_as_string(hide_password=False)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
