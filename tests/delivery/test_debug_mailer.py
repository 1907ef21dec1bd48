"""`DebugMailer` and the Pyramid include: mail into a folder, when the transaction commits."""

from __future__ import annotations

import os

import pytest
from letters import letter
from pyramid.config import Configurator
from pyramid.response import Response
from webtest import TestApp

import txmail.debug
from txmail import Message, get_mailer
from txmail.debug import DebugMailer
from txmail.exceptions import BadHeaders, ConfigurationError
from txmail.interfaces import IMailer


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mails"


def mails(folder):
    return [(folder / name).read_bytes() for name in sorted(os.listdir(folder))]


def test_mail_is_in_the_folder_after_the_commit(folder, tm):
    mailer = DebugMailer(str(folder), transaction_manager=tm)
    assert IMailer.providedBy(mailer)
    tm.begin()
    mailer.send(letter("one"))
    assert mails(folder) == []
    tm.commit()
    (mail,) = mails(folder)
    assert b"\r\nSubject: one\r\n" in mail
    assert os.listdir(folder)[0].endswith(".eml")


def test_mail_of_an_abort_is_not(folder, tm):
    mailer = DebugMailer(folder, transaction_manager=tm)
    tm.begin()
    mailer.send(letter("one"))
    tm.abort()
    assert mails(folder) == []


def test_messages_are_checked_as_by_the_real_one(folder, tm):
    mailer = DebugMailer(folder, transaction_manager=tm)
    with pytest.raises(BadHeaders):
        mailer.send(letter("one\nBcc: evil@example.com"))


def test_send_immediately_is_outside_any_transaction(folder):
    mailer = DebugMailer(folder, default_sender="shop@example.com")
    mailer.send_immediately(Message("one", ["ann@example.com"], "x"))
    assert mails(folder)[0].startswith(b"Return-Path: <shop@example.com>\r\n")


def test_a_bind_writes_to_the_same_folder(folder, tm):
    bound = DebugMailer(folder).bind(transaction_manager=tm)
    with tm:
        bound.send(letter("one"))
    assert len(mails(folder)) == 1


def test_settings_name_the_folder(folder):
    mailer = DebugMailer.from_settings(
        {"mail.top_level_directory": str(folder), "mail.default_sender": "shop@example.com"}
    )
    assert type(mailer) is DebugMailer
    assert mailer.default_sender == "shop@example.com"
    assert folder.is_dir()


@pytest.mark.parametrize("settings", [None, {}, {"mail.top_level_directory": " "}])
def test_settings_without_a_folder_are_refused(settings):
    with pytest.raises(ConfigurationError, match="top_level_directory"):
        DebugMailer.from_settings(settings)


def test_a_folder_that_cannot_be_made_is_found_out_at_the_start(folder):
    folder.write_text("")
    with pytest.raises(ConfigurationError, match=r"^top_level_directory.*Not a directory"):
        DebugMailer(folder)


def test_a_pyramid_application_writes_with_the_transaction_of_the_request(folder):
    def order(request):
        request.mailer.send(Message("Order", ["ann@example.com"], "Thank you"))
        if "fail" in request.params:
            raise ValueError("the view failed")
        return Response("ordered")

    settings = {
        "pyramid_mailer.prefix": "post.",
        "post.top_level_directory": str(folder),
        "post.default_sender": "shop@example.com",
    }
    config = Configurator(settings=settings)
    config.include("pyramid_tm")
    config.include("txmail.debug")
    config.add_route("order", "/order")
    config.add_view(order, route_name="order")
    app = TestApp(config.make_wsgi_app())
    with pytest.raises(ValueError, match="the view failed"):
        app.get("/order?fail=1")
    assert mails(folder) == []
    app.get("/order")
    assert len(mails(folder)) == 1
    assert isinstance(get_mailer(config.registry), DebugMailer)


def test_the_module_exports_what_pyramid_mailer_has_there():
    assert set(txmail.debug.__all__) == {"DebugMailer", "includeme"}
