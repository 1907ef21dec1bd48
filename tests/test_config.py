"""Settings become parts, or an error that names the one that is wrong."""

from __future__ import annotations

import logging

import pytest
from authority import Authority
from secrecy import leaks

from txmail import mailer_from_settings
from txmail.config.settings import read_settings
from txmail.exceptions import ConfigurationError


def read(**settings):
    return read_settings({f"mail.{name}": value for name, value in settings.items()})


DEFAULTS = {
    "route": "smtp://localhost:25",
    "tls": "off",
    "default_sender": None,
    "preflight": "auto",
    "transient": False,
    "commit_timeout": 30,
    "dummy_transactional": True,
}


def said(settings):
    """What differs from the defaults."""
    transport = settings.transport
    options = getattr(transport, "options", None)
    found = {name: getattr(settings, name, None) for name in DEFAULTS}
    found["route"] = transport.name
    found["tls"] = "off" if options is None else options.tls
    return {name: value for name, value in found.items() if value != DEFAULTS[name]}


def refused(**settings):
    with pytest.raises(ConfigurationError) as raised:
        read(**settings)
    return raised.value


@pytest.mark.parametrize("settings", [None, {}, {"pyramid.debug": "true", 5: "x", "mailx": 1}])
def test_without_settings_it_is_localhost(settings):
    assert said(read_settings(settings)) == {}


def test_everything_can_be_said_in_strings():
    found = read(
        url=" smtp://mx.example.com:2525?tls=off ",
        default_sender=' "Shop, The" <shop@example.com> ',
        preflight="always",
        transient="true",
        commit_timeout="7.5",
        dummy_transactional="no",
        delivery="direct",
        on_unavailable="abort",
        on_partial="abort",
    )
    assert said(found) == {
        "route": "smtp://mx.example.com:2525",
        "default_sender": '"Shop, The" <shop@example.com>',
        "preflight": "always",
        "transient": True,
        "commit_timeout": 7.5,
        "dummy_transactional": False,
    }


def test_everything_can_be_said_in_values():
    found = read(url="memory:", transient=True, commit_timeout=5, port=None, dummy_transactional=0)
    assert said(found) == {
        "route": "memory:",
        "transient": True,
        "commit_timeout": 5,
        "dummy_transactional": False,
    }


def test_settings_make_a_delivery():
    settings = {"url": "memory:", "preflight": "never", "commit_timeout": 3, "transient": "1"}
    delivery = mailer_from_settings({f"mail.{k}": v for k, v in settings.items()})._direct
    assert delivery.route == "memory:"
    assert (delivery.preflight, delivery.commit_timeout, delivery.transient) == ("never", 3, True)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"host": "localhost"}, "smtp://localhost:25"),
        ({"host": " localhost ", "port": "2525"}, "smtp://localhost:2525"),
        ({"host": "127.0.0.1", "port": 2525}, "smtp://127.0.0.1:2525"),
        ({"host": "::1"}, "smtp://[::1]:25"),
        ({"port": "1025"}, "smtp://localhost:1025"),
        ({"host": "", "port": ""}, "smtp://localhost:25"),
        ({"host": "localhost", "tls": "false", "ssl": False}, "smtp://localhost:25"),
        ({"host": "localhost", "username": "", "password": None}, "smtp://localhost:25"),
        ({"host": "localhost", "debug": "0", "queue_path": ""}, "smtp://localhost:25"),
        ({"host": "LOCALHOST"}, "smtp://localhost:25"),
        ({"host": "localhost", "ssl": "true"}, "smtps://localhost:465"),
        ({"host": "mx.example.com", "ssl": True, "port": "4650"}, "smtps://mx.example.com:4650"),
        ({"host": "localhost", "tls": "true"}, "smtp://localhost:25?tls=required"),
        ({"host": "localhost", "tls": "1", "ssl": "1"}, "smtps://localhost:465"),
        ({"host": "mx.example.com"}, "smtp://mx.example.com:25?tls=required"),
        ({"host": "mx.example.com", "tls": "true"}, "smtp://mx.example.com:25?tls=required"),
        ({"host": "192.0.2.1", "port": 587}, "smtp://192.0.2.1:587?tls=required"),
    ],
)
def test_what_pyramid_mailer_calls_it_is_understood(settings, url):
    found = read(**settings)
    route, _, options = url.partition("?tls=")
    implicit = "implicit" if route.startswith("smtps:") else "off"
    assert found.transport.name == route
    assert found.transport.options.tls == (options or implicit)
    assert found.transport.options.password is None


@pytest.mark.parametrize(
    ("settings", "user", "tls", "password"),
    [
        ({"url": "smtp://u:%40pw@mx.example.com"}, "u", "required", "@pw"),
        ({"url": "smtp://a%40b:pw@mx.example.com:587"}, "a@b", "required", "pw"),
        ({"url": "smtps://u:p:w@mx.example.com"}, "u", "implicit", "p:w"),
        ({"url": "smtp://u:100%@mx.example.com"}, "u", "required", "100%"),
        ({"url": "smtp://u:p%C3%A9@mx.example.com"}, "u", "required", "p\u00e9"),
        ({"host": "mx.example.com", "username": "u", "password": "pw"}, "u", "required", "pw"),
        (
            {"host": "localhost", "ssl": "1", "username": "u", "password": "pw"},
            "u",
            "implicit",
            "pw",
        ),
        (
            {"url": "smtp://mx.example.com", "username": "u", "password": "pw"},
            "u",
            "required",
            "pw",
        ),
        ({"url": "smtp://u@mx.example.com", "password": "pw"}, "u", "required", "pw"),
        (
            {"url": "smtp://u:pw@mx.example.com", "username": "v", "password": "x"},
            "u",
            "required",
            "pw",
        ),
        ({"url": "smtp://u:pw@localhost?auth_in_clear=yes"}, "u", "off", "pw"),
        ({"url": "smtp://u@mx.example.com?password_from=env:MAIL_PW"}, "u", "required", "from env"),
        (
            {"url": "smtp://u@mx.example.com", "password_from": "env:MAIL_PW"},
            "u",
            "required",
            "from env",
        ),
    ],
)
def test_who_we_are_is_said_in_the_url_or_beside_it(settings, user, tls, password, monkeypatch):
    monkeypatch.setenv("MAIL_PW", "from env")
    options = read(**settings).transport.options
    assert (options.user, options.tls) == (user, tls)
    assert options.password.reveal("x") == password


def test_files_beside_the_url_are_used_with_credentials_in_it(tmp_path):
    made = Authority(tmp_path)
    found = read(url="smtp://u:pw@mx.example.com", cafile=str(made.cafile))
    assert found.transport.options.files.cafile == str(made.cafile)


def test_a_transport_that_has_no_use_for_an_account_is_not_bothered_by_one():
    found = read(url="memory:", username="u", password="pw")
    assert said(found) == {"route": "memory:"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("urll", "smtp://localhost"),
        ("default-sender", "a@example.com"),
        ("", "x"),
        ("url", ""),
        ("url", None),
        ("url", b"smtp://localhost"),
        ("url", "mx.example.com"),
        ("url", "smtp://user@mx.example.com"),
        ("url", "smtp://localhost?pool=0"),
        ("host", 5),
        ("port", "smtp"),
        ("port", 0),
        ("port", "65536"),
        ("port", -1),
        ("port", 25.5),
        ("port", True),
        ("tls", "required"),
        ("ssl", "implicit"),
        ("default_sender", "nobody"),
        ("default_sender", "a@example.com, b@example.com"),
        ("default_sender", "a@example.com\nBcc: evil@example.net"),
        ("default_sender", ["a@example.com"]),
        ("preflight", "sometimes"),
        ("preflight", ""),
        ("preflight", True),
        ("transient", "maybe"),
        ("transient", None),
        ("transient", []),
        ("commit_timeout", "0"),
        ("commit_timeout", "-1"),
        ("commit_timeout", "inf"),
        ("commit_timeout", "nan"),
        ("commit_timeout", "soon"),
        ("commit_timeout", None),
        ("commit_timeout", True),
        ("dummy_transactional", "2"),
        ("delivery", "queue"),
        ("delivery", "fast"),
        ("on_unavailable", "queue"),
        ("on_partial", "queue"),
        ("on_doubt", "hold"),
        ("on_doubt", "shrug"),
        ("queue_url", "mysql://localhost/mail"),
        ("queue_url", "sqlite://"),
        ("queue_url", 5),
        ("queue_path", "false"),
        ("queue_limit", "0"),
        ("queue_limit", 10),
        ("username", "me"),
        ("username", "0"),
        ("username", b"me"),
        ("username", "me\0you"),
        ("username", "me\udcff"),
        ("password", "s3cret"),
        ("password", "false"),
        ("password", b"s3cret"),
        ("password", lambda: "s3cret"),
        ("password_from", "nowhere"),
        ("password_from", "env:"),
        ("password_from", "env:MAIL_PW"),
        ("cafile", "/does/not/exist.pem"),
        ("keyfile", "/etc/key.pem"),
        ("certfile", "/etc/cert.pem"),
        ("debug", "2"),
    ],
)
def test_a_setting_that_is_wrong_unknown_or_not_supported_is_refused_by_name(name, value):
    error = refused(**{name: value})
    assert error.field.startswith(f"mail.{name}")
    assert str(error).startswith(f"mail.{name}")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"host": "mx.example.com", "tls": "false"}, "mail.tls"),
        ({"host": "localhost:25"}, "mail.host"),
        ({"host": "localhost.."}, "mail.host"),
        ({"host": "mx.example.com", "username": "u"}, "mail.username"),
        ({"host": "mx.example.com", "password": "s3cret"}, "mail.password"),
        ({"host": "mx.example.com", "password_from": "env:X"}, "mail.password_from"),
        (
            {"username": "u", "password": "s3cret", "password_from": "env:X"},
            "mail.password_from",
        ),
        (
            {"url": "smtp://u:s3cret@mx.example.com?password_from=env:X"},
            "mail.url option password_from",
        ),
        ({"url": "smtp://u:@mx.example.com"}, "mail.url"),
        ({"host": "localhost", "username": "u", "password": "s3cret"}, "mail.url"),
        ({"url": "smtp://u:s3cret@mx.example.com?tls=off"}, "mail.url"),
        ({"host": "mx.example.com", "cafile": "/does/not/exist"}, "mail.cafile"),
        ({"host": "mx.example.com", "certfile": "/does/not/exist"}, "mail.certfile"),
        ({"host": "mx.example.com", "keyfile": "/does/not/exist"}, "mail.keyfile"),
        ({"url": "smtp://mx.example.com?cafile=/does/not/exist"}, "mail.url option cafile"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(settings, field):
    error = refused(**settings)
    assert error.field == field
    assert str(error).startswith(field + ": ")
    assert "/does/not" not in str(error)


def test_debug_turns_the_protocol_log_on():
    log = logging.getLogger("txmail.smtp")
    before = log.level
    try:
        read(debug="false")
        assert log.level == before
        read(debug="1")
        assert log.level == logging.DEBUG
    finally:
        log.setLevel(before)


@pytest.mark.parametrize(
    ("other", "value"),
    [("host", "localhost"), ("port", "25"), ("tls", "false"), ("ssl", "true")],
)
def test_the_server_is_said_once(other, value):
    assert refused(url="smtp://localhost", **{other: value}).field == f"mail.{other}"


def test_another_prefix_is_used_and_named():
    found = read_settings({"my.url": "memory:", "mail.url": "nonsense"}, "my.")
    assert found.transport.name == "memory:"
    with pytest.raises(ConfigurationError) as raised:
        read_settings({"my.port": "x"}, "my.")
    assert raised.value.field == "my.port"


@pytest.mark.parametrize(
    "settings",
    [
        {"password": "s3cret"},
        {"password": b"s3cret"},
        {"password": ["s3cret"]},
        {"username": "s3cret"},
        {"url": "smtp://user:s3cret@localhost"},
        {"url": "smtp://user:s3cret@mx.example.com:587?tls=off"},
        {"url": "smtp://user:s3cret@mx.example.com:587", "port": "25"},
        {"url": "smtp://user:s3cret@mx.example.com:587", "default_sender": "s3cret"},
        {"username": "u", "password": "s3cret", "preflight": "s3cret"},
        {"username": "u", "password": "s3cret", "commit_timeout": "s3cret"},
        {"username": "u", "password": "s3cret", "transient": "s3cret"},
        {"host": "mx.example.com", "username": "u", "password": "s3cret", "cafile": "s3cret"},
        {"port": "s3cret"},
        {"tls": "s3cret"},
        {"password_from": "s3cret"},
        {"host": "mx.example.com", "username": "s3cret\0", "password": "s3cret"},
        {"url": b"smtp://user:s3cret@localhost"},
        {"url": ["smtp://user:s3cret@localhost"]},
        {"host": "user:s3cret@localhost"},
        {"queue_url": "mysql://user:s3cret@localhost/mail"},
    ],
)
def test_no_password_gets_out(settings):
    prefixed = {f"mail.{name}": value for name, value in settings.items()}
    with pytest.raises(ConfigurationError) as raised:
        mailer_from_settings(prefixed)
    assert not leaks(raised.value, "s3cret")
