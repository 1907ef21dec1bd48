"""First steps with metrics: several workers on a host, and who reads them from another one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import txmail
from txmail.cli import main

pytest.importorskip("sqlalchemy")
pytest.importorskip("prometheus_client")

ROOT = Path(txmail.__file__).parents[1]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/mail.db"


@contextlib.contextmanager
def process(url, *arguments):
    """``txmail worker`` as a process; what its log says of the metrics' address."""
    command = [sys.executable, "-m", "txmail", "worker", "--queue-url", url, "--url", "memory:"]
    with subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            for line in started.stderr:
                if "metrics at " in line:
                    yield line.split()[-1]
                    break
            started.send_signal(signal.SIGTERM)
            assert started.wait(30) == 0
        finally:
            started.kill()


def get(address, host=None):
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def test_d9_several_workers_on_a_host_have_an_address_each(url):
    """One port for all that run on a host, so that a second one cannot start."""
    with (
        process(url, "--metrics-port", "0") as first,
        process(url, "--metrics-port", "0", "--metrics-host", "127.0.0.1") as second,
    ):
        assert first != second
        for address in (first, second):
            assert "txmail_queue_up 1.0" in get(address)


@pytest.mark.parametrize(
    ("host", "said", "reached"),
    [
        ("0.0.0.0", "0.0.0.0", "127.0.0.2"),
        pytest.param("127.0.0.3", "127.0.0.3", "127.0.0.3", marks=pytest.mark.sweep),
        pytest.param("localhost", "127.0.0.1", "127.0.0.1", marks=pytest.mark.sweep),
    ],
)
def test_d9_they_can_be_read_at_other_addresses_than_loopback_s(url, host, said, reached):
    """What was impossible: a scraper on another host; the log says where it is served."""
    more = ["--metrics-allow-host", "worker1.internal", "--metrics-allow-host", "metrics.internal"]
    with process(url, "--metrics-port", "0", "--metrics-host", host, *more) as address:
        found = re.fullmatch(r"http://([0-9.]+):([0-9]+)/metrics", address)
        assert found[1] == said
        there = f"http://{reached}:{found[2]}/metrics"
        for name in (None, "worker1.internal", f"metrics.internal:{found[2]}"):
            assert "txmail_queue_up 1.0" in get(there, name)
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(there, "evil.example")
        with refused.value as error:
            assert error.code == 400


def run(capsys, url, *arguments):
    code = main(["worker", "--queue-url", url, "--url", "memory:", *arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_d9_a_port_that_is_taken_is_told_with_the_way_out(capsys, url, host):
    """An error that says what is wrong, and not what to do."""
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        code, error = run(capsys, url, "--metrics-port", str(port), "--metrics-host", host)
    assert code == 2
    assert f"port {port}" in error
    assert "--metrics-port 0" in error


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid", "not an address", "::zz"])
def test_d9_an_address_that_is_not_ours_is_told_by_its_option(capsys, url, host):
    """The same, of the new option."""
    code, error = run(capsys, url, "--metrics-port", "0", "--metrics-host", host)
    assert code == 2
    assert f"--metrics-host {host}" in error


@pytest.mark.parametrize("option", ["--metrics-host", "--metrics-allow-host"])
def test_d9_an_option_that_would_do_nothing_is_refused(capsys, url, option):
    """Metrics that nobody serves, and nobody misses until they are needed."""
    with pytest.raises(SystemExit) as ended:
        run(capsys, url, option, "127.0.0.1")
    assert ended.value.code == 2
    assert f"{option} is for --metrics-port" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "http", "0x50", "\u0661", "9" * 5000, ""])
def test_d9_a_port_that_is_none_is_refused(capsys, url, port):
    """A number that no socket takes."""
    with pytest.raises(SystemExit) as ended:
        run(capsys, url, "--metrics-port", port)
    assert ended.value.code == 2
