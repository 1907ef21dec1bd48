"""The Pyramid integration: one line in the application, `request.mailer` in its views."""

import pytest
import transaction
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid.testing import DummyRequest
from webtest import TestApp

from txmail import DummyMailer, Mailer, Message, get_mailer
from txmail.exceptions import ConfigurationError, DeliveryRefused
from txmail.interfaces import IMailer
from txmail.testing import ScriptedServer


def order(request):
    request.mailer.send(Message("Order", [request.params["to"]], "Thank you"))
    if "fail" in request.params:
        raise ValueError("the view failed")
    return Response("ordered")


def application(include, **settings):
    config = Configurator(settings={"mail.default_sender": "shop@example.com", **settings})
    config.include("pyramid_tm")
    config.include(include)
    config.add_route("order", "/order")
    config.add_view(order, route_name="order")
    return config, TestApp(config.make_wsgi_app())


def test_a_request_sends_its_mail_when_it_commits():
    with ScriptedServer() as server:
        config, app = application("txmail", **{"mail.url": server.url})
        assert app.get("/order?to=ann@example.com").text == "ordered"
        assert [m.recipients for m in server.messages] == [("ann@example.com",)]
        get_mailer(config.registry).close()


def test_a_request_that_fails_sends_nothing():
    with ScriptedServer() as server:
        config, app = application("txmail", **{"mail.url": server.url})
        with pytest.raises(ValueError, match="the view failed"):
            app.get("/order?to=ann@example.com&fail=1")
        assert server.messages == []
        get_mailer(config.registry).close()


def test_a_refused_recipient_fails_the_request():
    with ScriptedServer() as server:
        server.refuse("bob@example.com", "550 5.1.1 no such user")
        config, app = application("txmail", **{"mail.url": server.url})
        with pytest.raises(DeliveryRefused):
            app.get("/order?to=bob@example.com")
        assert server.messages == []
        get_mailer(config.registry).close()


def test_the_mailer_of_a_request_is_bound_to_its_transaction_manager():
    config, _ = application("txmail.testing")
    request = DummyRequest()
    request.registry = config.registry
    request.tm = transaction.TransactionManager(explicit=True)
    mailer = get_mailer(request)
    assert mailer.transaction_manager is request.tm
    assert isinstance(mailer, DummyMailer)
    assert get_mailer(config.registry).transaction_manager is transaction.manager


def test_the_testing_include_keeps_mail_in_the_outbox():
    config, app = application("txmail.testing")
    app.get("/order?to=ann@example.com")
    with pytest.raises(ValueError, match="the view failed"):
        app.get("/order?to=bob@example.com&fail=1")
    outbox = get_mailer(config.registry).outbox
    assert [m.recipients for m in outbox] == [["ann@example.com"]]


def test_the_prefix_of_pyramid_mailer_is_heeded():
    config = Configurator(
        settings={"pyramid_mailer.prefix": "post.", "post.default_sender": "a@example.com"}
    )
    config.include("txmail")
    mailer = config.registry.getUtility(IMailer)
    assert type(mailer) is Mailer
    assert mailer.default_sender == "a@example.com"


def test_a_wrong_setting_stops_the_start():
    config = Configurator(settings={"mail.hots": "localhost"})
    with pytest.raises(ConfigurationError, match=r"mail\.hots"):
        config.include("txmail")
