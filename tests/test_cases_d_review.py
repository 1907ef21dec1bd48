"""First steps: what an error says."""

from __future__ import annotations

import pytest

from txmail import mailer_from_settings
from txmail.cli import main
from txmail.config.inifile import read_ini
from txmail.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"[app:main]\na = hush\na = other\n", "line 3: .* its section has this name twice"),
        (b"[app:main]\na = hush\n[app:main]\n", "line 3: .* has this section twice"),
        (b"a = hush\n[app:main]\n", "line 1: .*no \\[section\\] has begun"),
        (b"\xef\xbb\xbf[app:main]\na = hush\n", "line 1: .*byte order mark"),
        (b"[app:main]\na = hush\xe4\n", "file in UTF-8"),
        (b"[app:main]\na = b\nhush\n", "line 3: .* neither"),
    ],
)
def test_d1_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path, octets, problem):
    """Stands for one text for all that may be wrong, which is not so for most of it."""
    path = tmp_path / "app.ini"
    path.write_bytes(octets)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        read_ini(str(path))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["url", "queue_url", "default_sender", "commit_timeout", "ulr"])
def test_d3_a_prefix_that_stands_twice_is_seen(name):
    """Stands for the nearest name where it is the whole of a name that is too long."""
    meant = "url" if name == "ulr" else name
    with pytest.raises(ConfigurationError, match=f"did you mean mail.{meant}\\?"):
        mailer_from_settings({f"mail.mail.{name}": "x"})


@pytest.mark.parametrize(
    ("host", "say"),
    [
        ("mx.example.com:25", "mail.port"),
        ("smtp://mx.example.com", "mail.url"),
        ("mx example", "host name"),
        ("[::1]", "host name or an IP address"),
        ("mx..example.com", "host name"),
        ("-mx", "host name"),
    ],
)
def test_d3_a_bad_host_is_an_error_about_the_host(host, say):
    """Stands for an error about a setting that the user has not written."""
    with pytest.raises(ConfigurationError, match=say) as caught:
        mailer_from_settings({"mail.host": host, "mail.tls": "true"})
    assert caught.value.field == "mail.host"


@pytest.mark.parametrize(
    ("given", "variable", "name"),
    [
        (["doctor", "--url", "smtp://h:465"], None, "--url (mail.url): "),
        (["doctor"], ("TXMAIL_URL", "smtp://h:465"), "TXMAIL_URL (mail.url): "),
        (["doctor", "--url", "smtp://h?messages=0"], None, "--url (mail.url) option messages: "),
        (
            ["send", "--url", "smtp://h:465", "--to", "a@b.c", "--from", "a@b.c", "--body", "x"],
            None,
            "--url (mail.url): ",
        ),
        (["db", "status", "--queue-url", "mysql://h/d"], None, "--queue-url (mail.queue_url)"),
        (
            ["db", "status"],
            ("TXMAIL_QUEUE_URL", "mysql://h/d"),
            "TXMAIL_QUEUE_URL (mail.queue_url)",
        ),
        (
            ["worker", "--queue-url", "mysql://h/d", "--url", "memory:"],
            None,
            "--queue-url (mail.queue_url)",
        ),
    ],
)
def test_d3_a_command_names_what_the_user_has_written(monkeypatch, capsys, given, variable, name):
    """Stands for an option or a variable that an error calls by the name of a setting."""
    for known in ("TXMAIL_URL", "TXMAIL_QUEUE_URL"):
        monkeypatch.delenv(known, raising=False)
    if variable:
        monkeypatch.setenv(*variable)
    assert main(given) != 0
    assert f"txmail {given[0]}: {name}" in capsys.readouterr().err


def make_folder(path):
    path.mkdir()


def make_open_folder(path):
    path.parent.chmod(0o777)


def make_link(path):
    path.symlink_to(path.parent / "elsewhere.db")


@pytest.mark.parametrize("made", [make_folder, make_open_folder, make_link, None])
@pytest.mark.parametrize("more", [["--once"], []])
def test_d11_a_worker_whose_queue_cannot_be_there_says_so(tmp_path, capsys, made, more):
    """Stands for an error of the place, which is looked at late, in place of a traceback."""
    path = tmp_path / "folder" / "mail.db"
    if made is None:
        path = tmp_path / "a file" / "mail.db"
        path.parent.write_text("")
    else:
        path.parent.mkdir()
        made(path)
    code = main(["worker", *more, "--queue-url", f"sqlite:///{path}", "--url", "memory:"])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("txmail worker: ")
    assert str(path.parent) in error


@pytest.mark.parametrize("between", [", ", ",\n", ",  ", " , ", ","])
def test_d3_a_list_of_urls_with_commas_is_refused_with_what_to_do(between):
    """Stands for an error that finds fault with a host that is none."""
    urls = between.join(["smtp://a.example.com", "smtp://b.example.com"])
    with pytest.raises(ConfigurationError) as caught:
        mailer_from_settings({"mail.url": urls, "mail.username": "u", "mail.password": "hush"})
    assert caught.value.field == "mail.url"
    assert "between them" in str(caught.value) or between in (" , ", ",")
    assert "hush" not in str(caught.value)
