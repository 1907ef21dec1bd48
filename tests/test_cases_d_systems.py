"""Systems that lack something: what does not need it works, what does is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import txmail

ROOT = Path(txmail.__file__).parents[1]

#: Takes away from Python what a system lacks, and hides /proc.
LACK = """
import builtins, os, select, signal, socket, sys, time
for where, names in {lacking!r}.items():
    module = sys.modules[where]
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
os.supports_dir_fd = set() if {no_dir_fd!r} else os.supports_dir_fd
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
def hidden(function):
    def wrapper(path, *args, **options):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return function(path, *args, **options)
    return wrapper
builtins.open, os.readlink = hidden(builtins.open), hidden(os.readlink)
"""

SYSTEMS = {
    "without O_DIRECTORY": {"os": ["O_DIRECTORY"]},
    "without O_NOFOLLOW, O_CLOEXEC": {"os": ["O_NOFOLLOW", "O_CLOEXEC"]},
    "macOS": {"os": ["sched_getaffinity", "mknod"], "time": ["CLOCK_BOOTTIME"]},
    "without fork": {"os": ["fork", "register_at_fork"]},
    "Windows": {
        "os": [
            *("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "fork", "register_at_fork"),
            *("geteuid", "getuid", "mknod", "killpg", "fchmod", "statvfs", "sched_getaffinity"),
        ],
        "select": ["poll", "epoll"],
        "signal": ["SIGKILL", "SIGHUP", "SIGQUIT", "SIGALRM", "setitimer", "pthread_sigmask"],
        "socket": ["AF_UNIX", "MSG_NOSIGNAL", "TCP_USER_TIMEOUT"],
        "time": ["CLOCK_BOOTTIME", "clock_gettime"],
    },
}

IMPORTS = """
import importlib, pkgutil, txmail
for module in pkgutil.walk_packages(txmail.__path__, "txmail."):
    if "migrations" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""

SENDS = """
import transaction
from txmail import DummyMailer, Message, mailer_from_settings, transport_from_url
from txmail.exceptions import ConfigurationError
message = Message("x", ["ann@example.com"], "x", sender="a@example.com")
mailer = mailer_from_settings({"mail.url": URL, **MORE})
try:
    with transaction.manager:
        (mailer.enqueue if MORE else mailer.send)(message)
except ConfigurationError as error:
    print("refused", error)
else:
    print(mailer.last_outcomes[0].status)
mailer.close()
"""


def run(system, code, folder, **values):
    lacking = SYSTEMS[system]
    lack = LACK.format(lacking=lacking, no_dir_fd=system == "Windows")
    given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", lack + given + code],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.sweep
def test_d8_everything_can_be_imported(system, tmp_path):
    """Kind: a name of one system, looked up where a module is imported."""
    run(system, IMPORTS, tmp_path)


def sweep(*values):
    """A case that the default run leaves out: each is a process of its own."""
    return pytest.param(*values, marks=pytest.mark.sweep)


@pytest.mark.parametrize(
    ("system", "url", "more", "said"),
    [
        ("Windows", "memory:", {}, "accepted"),
        sweep("Windows", "console:", {}, "accepted"),
        ("Windows", "{server}", {}, "refused smtp://127.0.0.1:{port}: it does not work"),
        sweep("Windows", "file:{folder}/mails", {}, "O_DIRECTORY, O_NOFOLLOW, dir_fd"),
        sweep("Windows", "sendmail://{programs}/reads", {}, "poll, killpg"),
        sweep("Windows", "memory:", {"mail.queue_url": "sqlite:///{folder}/m.db"}, "geteuid"),
        ("without O_DIRECTORY", "{server}", {}, "accepted"),
        sweep("without O_DIRECTORY", "sendmail://{programs}/reads", {}, "accepted"),
        sweep("without O_DIRECTORY", "file:{folder}/mails", {}, "no O_DIRECTORY"),
        sweep("without O_NOFOLLOW, O_CLOEXEC", "file:{folder}/mails", {}, "no O_NOFOLLOW"),
        sweep("without fork", "file:{folder}/mails", {}, "accepted"),
        sweep("without fork", "{server}", {}, "accepted"),
        sweep("without fork", "memory:", {"mail.queue_url": "sqlite:///{folder}/m.db"}, "unsent"),
        sweep("macOS", "{server}", {}, "accepted"),
        sweep("macOS", "file:{folder}/mails", {}, "accepted"),
    ],
)
def test_d8_what_a_system_cannot_do_is_refused_by_name(
    system, url, more, said, tmp_path, tmp_path_factory, server
):
    """Kind: the same, where it is used: an AttributeError, or something done by halves."""
    port = server.url.rpartition(":")[2]
    reads = tmp_path_factory.mktemp("programs") / "reads"
    reads.write_text("#!/bin/sh\nexec cat >/dev/null\n")
    reads.chmod(0o755)
    words = {"server": server.url, "folder": str(tmp_path), "port": port}
    words["programs"] = str(reads.parent)
    filled = {name: value.format(**words) for name, value in more.items()}
    out = run(system, SENDS, tmp_path, URL=url.format(**words), MORE=filled)
    assert said.format(**words) in out
    if "refused" not in out:
        assert out in ("accepted", "unsent")
    else:
        assert "this operating system, which has no" in out
        assert list(tmp_path.iterdir()) == []
