"""`Secret`: what is shown of a password, and where it comes from."""

import copy
import json
import pickle
import sys
import traceback

import pytest

from txmail.exceptions import ConfigurationError
from txmail.secret import STARS, Secret, Unshown, bare

VALUE = "hunter2-very-secret"


def token():
    return VALUE


def broken():
    password = VALUE
    raise RuntimeError(f"could not use {password}")


def test_a_secret_gives_its_value_to_reveal_only():
    secret = Secret(VALUE)
    assert secret.reveal("user@host") == VALUE
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>10}", "%s" % secret]  # noqa: UP031
    assert set(shown) == {STARS, f"{STARS:>10}"}
    assert not hasattr(secret, "__dict__")
    assert VALUE not in repr([getattr(secret, name) for name in Secret.__slots__])
    with pytest.raises(TypeError):
        json.dumps({"password": secret})
    with pytest.raises(TypeError):
        list(secret)


def test_a_pickled_value_is_gone_and_names_its_owner():
    pickled = pickle.dumps(Secret(VALUE))
    assert VALUE.encode() not in pickled
    with pytest.raises(ConfigurationError, match=r"ann@mx\.example\.com: the password was not"):
        pickle.loads(pickled).reveal("ann@mx.example.com")


def test_a_copy_within_the_process_keeps_the_value():
    secret = Secret(VALUE)
    assert copy.copy(secret).reveal("x") == copy.deepcopy([secret])[0].reveal("x") == VALUE


def test_sources_are_asked_on_use_also_after_a_pickle(monkeypatch, tmp_path):
    file = tmp_path / "password"
    file.write_text(VALUE + "\nsecond line\n", encoding="utf-8")
    monkeypatch.setenv("MAIL_PASSWORD", VALUE)
    for source in ("env:MAIL_PASSWORD", f"file:{file}", f"{__name__}:token"):
        secret = pickle.loads(pickle.dumps(Secret(source=source)))
        assert secret.reveal("x") == VALUE
        assert VALUE.encode() not in pickle.dumps(secret)
    monkeypatch.setenv("MAIL_PASSWORD", "changed")
    assert Secret(source="env:MAIL_PASSWORD").reveal("x") == "changed"


def test_a_module_level_function_is_its_own_source():
    secret = Secret.of(token, "password")
    assert secret.source == f"{__name__}:token"
    assert pickle.loads(pickle.dumps(secret)).reveal("x") == VALUE
    with pytest.raises(ConfigurationError, match="password: a function at the top level"):
        Secret.of(lambda: VALUE, "password")


@pytest.mark.parametrize("source", ["", "env:", "file:", "nothing", "a b:c", "module:"])
def test_a_source_that_is_none_is_refused_at_once(source):
    with pytest.raises(ConfigurationError, match="password_from"):
        Secret(source=source)


def test_a_source_that_fails_leaks_nothing():
    for source in ("env:NOT_SET_ANYWHERE", "file:/does/not/exist", f"{__name__}:broken"):
        with pytest.raises(ConfigurationError) as caught:
            Secret(source=source).reveal("ann@mx.example.com")
        error = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert VALUE not in "".join(error.format())
        assert "ann@mx.example.com" in str(caught.value)


@pytest.mark.parametrize("value", ["", "a\0b", "a\nb", "a\x7f", "a\udcff", None, b"octets", 5])
def test_what_cannot_be_sent_is_no_password(value, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "VALUE", value)
    with pytest.raises(ConfigurationError, match=r"^ann@host: ") as caught:
        Secret(source=f"{__name__}:token").reveal("ann@host")
    assert not value or repr(value) not in repr(caught.value)


def test_a_source_names_the_setting_it_came_from():
    with pytest.raises(ConfigurationError) as caught:
        Secret(source="nothing", field="mail.password_from")
    assert caught.value.field == "mail.password_from"


def test_a_variable_that_is_not_shown_is_in_no_traceback_and_no_pickle():
    hidden = Unshown({"mail.password": VALUE})
    assert hidden.get() == {"mail.password": VALUE}
    assert repr(hidden) == f"{hidden}" == STARS
    with pytest.raises(TypeError):
        pickle.dumps(hidden)


def test_a_bare_error_has_lost_where_it_came_from():
    def fails(password):
        try:
            raise ValueError(password)
        except ValueError as error:
            raise ConfigurationError("it is wrong", field="x") from error

    with pytest.raises(ConfigurationError) as caught:
        fails(VALUE)
    error = bare(caught.value)
    assert error is caught.value
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    assert str(error) == "x: it is wrong"


def test_equal_secrets_are_equal_so_that_connections_can_be_shared():
    assert Secret(VALUE) == Secret(VALUE)
    assert Secret(VALUE) != Secret("other")
    assert Secret(source="env:A") == Secret(source="env:A")
    assert Secret(source="env:A") != Secret(VALUE)
    assert hash(Secret(VALUE)) == hash(Secret("other"))
