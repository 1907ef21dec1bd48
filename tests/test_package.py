"""What importing the package promises, and the values that everything else is built from."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import pytest

import txmail
from txmail import Envelope, Outcome, exceptions
from txmail.envelope import pass_gate
from txmail.events import Event, Events, MessageSettled
from txmail.exceptions import (
    AddressError,
    BadHeaders,
    ConfigurationError,
    DeliveryRefused,
    DeliveryUnavailable,
    InvalidMessage,
    MessageError,
    PartialDelivery,
    TransportError,
    TxmailError,
)
from txmail.outcome import Action, Scope, Status
from txmail.reply import EnhancedStatus, Reply

CONTENT = b"From: a@b.c\r\nMessage-ID:\r\n <1@example.com>\r\nSubject: x\r\n\r\nMessage-ID: no\r\n"


def in_a_fresh_process(code):
    run = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def test_importing_txmail_loads_no_optional_library():
    optional = (
        "sqlalchemy jinja2 pyramid ZODB rich aiosmtpd zope.sqlalchemy alembic inscriptis lxml "
        "prometheus_client"
    )
    code = f"import sys, txmail; print([n for n in {optional.split()!r} if n in sys.modules])"
    assert in_a_fresh_process(code) == "[]"


@pytest.mark.representative(every=5)
@pytest.mark.parametrize("module", ["mailer", "message", "interfaces", "exceptions", "testing"])
def test_modules_have_the_paths_of_pyramid_mailer(module):
    assert in_a_fresh_process(f"import txmail.{module} as m; print(m.__name__)") == (
        f"txmail.{module}"
    )


def test_only_what_is_built_is_exported():
    assert {name for name in txmail.__all__ if not hasattr(txmail, name)} == set()
    for absent in ("submit_job",):
        assert not hasattr(txmail.Mailer, absent)


def test_a_worker_without_a_queue_is_refused():
    pytest.importorskip("sqlalchemy")
    mailer = txmail.mailer_from_settings({"mail.url": "memory:"})
    with pytest.raises(ConfigurationError, match="queue_url is needed"):
        txmail.start_worker(mailer)


def test_every_error_is_a_txmail_error_and_bad_input_is_a_value_error():
    errors = [
        e for e in vars(exceptions).values() if isinstance(e, type) and issubclass(e, Exception)
    ]
    ours = [e for e in errors if e.__module__ == "txmail.exceptions"]
    assert all(issubclass(e, TxmailError) for e in ours)
    for error in (ConfigurationError, AddressError, MessageError):
        assert issubclass(error, ValueError)
    assert issubclass(BadHeaders, InvalidMessage)
    assert issubclass(InvalidMessage, MessageError)


def test_a_field_error_names_the_field_and_echoes_sixty_characters():
    error = MessageError("too long", field="subject", value="x" * 1000)
    assert error.field == "subject"
    assert str(error) == "subject: too long: '" + "x" * 60 + "'..."
    assert "\n" not in str(MessageError("bad", field="subject", value="a\nb"))


OUTCOME = Outcome("a@example.com", Status.FAILED, Scope.RECIPIENT, Reply(550, ("5.1.1 no",)))


@pytest.mark.parametrize(
    "error",
    [
        AddressError("bad", field="sender", value="x"),
        DeliveryRefused("no", (OUTCOME,), databases_may_be_committed=True),
        DeliveryUnavailable("no", (OUTCOME,)),
        PartialDelivery("no", (OUTCOME,)),
        TransportError("no", temporary=False, lost=True, reply=Reply(554, ("no",))),
        BadHeaders(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_survive_pickle_and_copy(error):
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_values_are_frozen():
    envelope = Envelope("a@example.com", ("b@example.com",), CONTENT)
    for value, name in ((envelope, "sender"), (OUTCOME, "status"), (Reply(250), "code")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)


def test_an_envelope_reads_its_message_id_from_the_header_section_only():
    assert Envelope("a@example.com", ["b@example.com"], CONTENT).message_id == "<1@example.com>"
    assert Envelope("a@example.com", ["b@example.com"], b"\r\nMessage-ID: x\r\n").message_id == ""


def test_an_envelope_has_recipients_each_of_them_once():
    envelope = Envelope("", ["b@Example.com", "c@example.com", "b@Example.com"], CONTENT)
    assert envelope.recipients == ("b@Example.com", "c@example.com")
    assert envelope.reverse_path == b"<>"
    with pytest.raises(InvalidMessage, match="recipients: there are none"):
        Envelope("a@example.com", [], CONTENT)


@pytest.mark.parametrize(
    ("sender", "recipients", "field"),
    [
        ("a b@example.com", ["b@example.com"], "sender"),
        ("a@example.com", ["b@example.com> SIZE=1"], "recipients"),
        ("a@example.com", [None], "recipients"),
        ("a@example.com", "b@example.com", "recipients"),
    ],
)
def test_an_envelope_with_a_bad_address_names_the_field(sender, recipients, field):
    with pytest.raises((AddressError, InvalidMessage)) as caught:
        Envelope(sender, recipients, CONTENT)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("sender", "content", "smtputf8", "eightbit"),
    [
        ("a@example.com", b"Subject: x\r\n\r\nx\r\n", False, False),
        ("a@example.com", b"Subject: x\r\n\r\n\xc3\xa9\r\n", False, True),
        ("a@example.com", b"Subject: \xc3\xa9\r\n\r\nx\r\n", True, True),
        ("\xe9@example.com", b"Subject: x\r\n\r\nx\r\n", True, False),
        ("a@b\xfccher.example", b"Subject: x\r\n\r\nx\r\n", False, False),
    ],
)
def test_an_envelope_knows_which_extensions_it_needs(sender, content, smtputf8, eightbit):
    envelope = Envelope(sender, ["b@example.com"], content)
    assert envelope.needs_smtputf8 is smtputf8
    assert envelope.needs_8bitmime is eightbit


@pytest.mark.parametrize("subject", [b"x", "\xe9".encode()])
@pytest.mark.parametrize("sender", ["a@example.com", "\xe9@example.com", ""])
@pytest.mark.parametrize("kept", [["b@example.com"], ["\xe9@c.example", "B@example.com"]])
def test_an_envelope_for_some_recipients_is_the_one_that_would_be_made_for_them(
    subject, sender, kept
):
    content = b"Message-ID: <1@b.c>\r\nSubject: %s\r\n\r\nx\r\n" % subject
    everybody = ["b@example.com", "B@example.com", "\xe9@c.example"]
    envelope = pass_gate(Envelope(sender, everybody, content))
    part = envelope.only(iter(kept))
    made = pass_gate(Envelope(sender, kept, content))
    for field in dataclasses.fields(Envelope):
        assert getattr(part, field.name) == getattr(made, field.name), field.name
    assert part.canonical
    assert envelope.recipients == tuple(everybody)


@pytest.mark.parametrize(
    ("kept", "error", "problem"),
    [
        ([], InvalidMessage, "there are none"),
        ("b@example.com", InvalidMessage, "not a string"),
        (["b@EXAMPLE.com"], AddressError, "not a recipient of this envelope: 'b@EXAMPLE.com'"),
        ([None], AddressError, "a string is needed"),
    ],
)
def test_an_envelope_has_no_part_for_others_than_its_recipients(kept, error, problem):
    envelope = Envelope("a@example.com", ["b@example.com"], CONTENT)
    with pytest.raises(error, match=problem) as caught:
        envelope.only(kept)
    assert caught.value.field == "recipients"


def test_an_envelope_shows_no_content():
    assert "secret" not in repr(Envelope("a@example.com", ["b@example.com"], b"\r\nsecret\r\n"))


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (Status.ACCEPTED, "accepted"),
        (Status.DEFERRED, "deferred"),
        (Status.FAILED, "failed"),
        (Status.IN_DOUBT, "in_doubt"),
        (Status.UNSENT, "unsent"),
    ],
)
def test_a_status_prints_as_its_word(status, text):
    assert str(status) == f"{status}" == text == status


def test_an_enhanced_status_counts_only_if_its_class_fits_the_code():
    assert Reply(550, ("5.1.1 no such user",)).enhanced == EnhancedStatus(5, 1, 1)
    assert Reply(450, ("5.1.1 no such user",)).enhanced is None
    assert Reply(550, ("no such user",)).enhanced is None
    assert Reply(550, ("5.1.10",)).enhanced == EnhancedStatus(5, 1, 10)


def test_control_characters_of_a_reply_never_reach_a_terminal_raw():
    shown = str(Reply(550, ("\x1b[2J\x07\r no \u202e",)))
    assert shown.isprintable()
    assert shown.startswith("550 \\x1b[2J\\x07")


def test_every_subscriber_hears_of_an_event_although_one_raises(caplog):
    heard = []
    events = Events()

    def broken(event):
        raise RuntimeError("broken subscriber")

    events.subscribe(broken)
    events.subscribe(heard.append)
    events.emit(Event())
    assert heard == [Event()]
    assert "a subscriber failed" in caplog.text
    events.unsubscribe(heard.append)
    events.emit(Event())
    assert heard == [Event()]


def test_success_is_one_info_line_with_message_id_host_and_reply(caplog):
    caplog.set_level("INFO", logger="txmail")
    accepted = Outcome(
        "a@example.com",
        Status.ACCEPTED,
        Scope.MESSAGE,
        Reply(250, ("2.0.0 queued as 1",)),
        "<1@example.com>",
        Action.DONE,
    )
    Events().emit(MessageSettled("<1@example.com>", "smtp://mx.example.com:25", (accepted,)))
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage() == (
        "sent <1@example.com> via smtp://mx.example.com:25 to 1 recipient(s): 250 2.0.0 queued as 1"
    )
