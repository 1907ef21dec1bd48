"""Errors about settings: they name what the user wrote, and what to do about it."""

from __future__ import annotations

import builtins

import pytest

from txmail import Mailer, Template, mailer_from_settings, transport_from_url
from txmail.common.nearest import nearest
from txmail.common.shown import shown
from txmail.config.template_engine import template_engine
from txmail.debug import DebugMailer
from txmail.exceptions import FIELD_LIMIT, ConfigurationError

PASSWORD = "hunter2"


def problem(settings, prefix="mail.", kind=Mailer):
    with pytest.raises(ConfigurationError) as caught:
        kind.from_settings({prefix + name: value for name, value in settings.items()}, prefix)
    said = str(caught.value)
    assert said.startswith(f"{caught.value.field}: ")
    assert PASSWORD not in said
    return caught.value.field, said


WRONG = [
    ({"queue_url": "sqlite:///:memory:"}, "queue_url"),
    ({"queue_url": "mysql://x"}, "queue_url"),
    ({"queue_url": "nonsense"}, "queue_url"),
    ({"queue_url": "session:", "queue_engine_url": "nonsense"}, "queue_engine_url"),
    ({"queue_path": "/x", "queue_limit": "-1"}, "queue_limit"),
    ({"queue_url": "sqlite:////x.db", "on_doubt": "maybe"}, "on_doubt"),
    ({"url": "smtp://"}, "url"),
    ({"url": "smtp://x?tls=maybe"}, "url option tls"),
    ({"commit_timeout": "0"}, "commit_timeout"),
    ({"delivery": "queue"}, "delivery"),
    ({"username": "ann"}, "username"),
    ({"route.bulk.rate": "0", "queue_url": "sqlite:////x.db"}, "route.bulk.rate"),
    (
        {"route.bulk.connections": "1", "route.bulk.url": "smtp://x?connections=2"}
        | {"queue_url": "sqlite:////x.db"},
        "route.bulk.connections",
    ),
    ({"route.bulk.url": "smtp://", "queue_url": "sqlite:////x.db"}, "route.bulk.url"),
]


@pytest.mark.parametrize("prefix", ["mail.", "post.", "pyramid_mailer.mail."])
@pytest.mark.parametrize(("settings", "field"), WRONG)
def test_d3_an_error_has_the_prefix_of_the_settings_once(settings, field, prefix):
    """Kind: a name that is made at several floors, each of which adds to it."""
    assert problem(settings, prefix)[0] == prefix + field


@pytest.mark.parametrize("prefix", ["mail.", "post."])
def test_d3_the_folder_of_a_debug_mailer_is_named_by_its_setting(prefix, tmp_path):
    """Kind: the same; an argument's name where the user wrote a setting."""
    (tmp_path / "file").write_text("x")
    for folder in (None, str(tmp_path / "file")):
        given = {} if folder is None else {"top_level_directory": folder}
        assert problem(given, prefix, DebugMailer)[0] == f"{prefix}top_level_directory"


@pytest.mark.parametrize("prefix", ["mail.", "post."])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"host": "x"}, {"url": "smtp://x"}),
        ({"port": 25}, {"url": "smtp://x"}),
        ({"tls": "true"}, {"url": "smtp://x"}),
        ({"ssl": "true"}, {"url": "smtp://x"}),
        ({"queue_path": "/x"}, {"queue_url": "sqlite:////x.db"}),
        ({"password_from": "env:X"}, {"password": PASSWORD, "username": "ann"}),
    ],
)
def test_d3_a_conflict_names_both_settings_and_what_to_do(one, other, prefix):
    """Kind: an error that names one of two, with "it" for the rest."""
    field, said = problem({**one, **other}, prefix)
    assert field == prefix + next(iter(one))
    assert f"it conflicts with {prefix}{next(iter(other))}, which already says" in said
    assert "remove one" in said


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("timeout", "commit_timeout"),
        ("hots", "host"),
        ("URL", "url"),
        ("usrename", "username"),
        ("user_name", "username"),
        ("defualt_sender", "default_sender"),
        ("default-sender", "default_sender"),
        ("sender_default", None),
        ("queue-url", "queue_url"),
        ("quue_url", "queue_url"),
        ("passwd", "password"),
        ("ona_doubt", "on_doubt"),
        ("zzz", None),
        ("x" * 5000, None),
        ("", None),
    ],
)
def test_d3_a_setting_that_is_not_there_has_a_suggestion(name, meant):
    """Kind: a misspelt name, of which it is only said that it is none."""
    field, said = problem({name: PASSWORD})
    assert field == shown(f"mail.{name}", FIELD_LIMIT)  # the middle of a long one is left out
    assert field == f"mail.{name}" or len(name) > FIELD_LIMIT
    assert "there is no such setting" in said
    if meant is None:
        assert "did you mean" not in said or name == "sender_default"
    else:
        assert f"did you mean mail.{meant}?" in said


@pytest.mark.parametrize("name", ["timeout", "window", "pool", "auth", "local_hostname"])
def test_d3_an_option_of_urls_is_told_where_it_belongs(name):
    """Kind: the right word in the wrong place."""
    assert f"mail.url = smtp://HOST?{name}=" in problem({name: "1"})[1]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("route.bulk.rat", "route.bulk.rate"),
        ("route.bulk.sender", "route.bulk.senders"),
        ("route.bulk.prioritys", "route.bulk.priorities"),
    ],
)
def test_d3_settings_of_routes_have_suggestions(name, meant):
    """Kind: the same."""
    assert f"did you mean mail.{meant}?" in problem({name: "1"})[1]


def test_d3_options_of_urls_and_of_bind_have_suggestions(make_mailer):
    """Kind: the same, for the other places where a name is given."""
    with pytest.raises(ConfigurationError, match=r"option tsl: .*did you mean tls\?"):
        transport_from_url("smtp://x?tsl=off")
    with pytest.raises(ConfigurationError, match=r"did you mean local_hostname\?"):
        transport_from_url("smtp://x?localhostname=y")
    with pytest.raises(ConfigurationError, match=r"^sesion: .*did you mean session\?"):
        make_mailer().bind(sesion=None)


def test_d3_a_missing_library_is_told_by_what_was_used(monkeypatch):
    """Kind: an error about an argument that nobody has given."""
    real = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "jinja2":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(__import__("sys").modules, "txmail.integrations.jinja2", raising=False)
    template_engine.cache_clear()
    with pytest.raises(ConfigurationError, match=r"^Template: it needs Jinja2: pip install"):
        Template(subject="x", text="x")
    template_engine.cache_clear()


def test_d3_suggestions_take_bounded_work():
    """Kind: a comparison whose work grows with what is given."""
    assert nearest("a" * 10_000_000, ["url", "host"]) is None


def test_d3_what_is_right_is_still_taken():
    """Kind: a check that goes too far."""
    mailer = mailer_from_settings({"mail.url": "memory:", "mail.commit_timeout": "5"})
    mailer.close()
