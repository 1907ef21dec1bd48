"""The logger ``txmail.smtp``: what was said, without what is nobody's business."""

from __future__ import annotations

import base64
import logging

import pytest
from authority import Authority
from commits import commit, note
from smtp_helpers import RawServer, greeted

from txmail.testing import CLOSE, ScriptedServer, then

ONE = note("one", b"A text that is nobody's business.\r\n.\r\n" * 3)


@pytest.fixture
def lines(caplog):
    """The lines of the log, without the route they begin with."""
    caplog.set_level(logging.DEBUG, logger="txmail.smtp")

    def read():
        found = [r for r in caplog.records if r.name == "txmail.smtp"]
        assert all(r.levelno == logging.DEBUG and r.exc_info is None for r in found)
        messages = [r.getMessage() for r in found]
        assert all(message.startswith("smtp://127.0.0.1:") for message in messages)
        assert all(message.isprintable() for message in messages)
        return [message.partition(" ")[2] for message in messages]

    return read


def test_it_has_the_dialogue_and_no_content(tm, mailer, server, lines):
    commit(tm, mailer, ONE)
    commit(tm, mailer, ONE)
    mailer.close()
    once = [
        f"C: MAIL FROM:<one@example.com> SIZE={ONE.size}",
        "C: RCPT TO:<one@example.net>",
        "S: 250 2.1.0 Ok",
        "S: 250 2.1.5 Ok",
        "C: DATA",
        "S: 354 End with <CRLF>.<CRLF>",
        f"C: (content, {ONE.size} octets)",
        "S: 250 2.0.0 Ok: queued",
    ]
    assert lines() == [
        "S: 220 mx.example.com ESMTP",
        "C: EHLO [127.0.0.1]",
        "S: 250 mx.example.com",
        "S: 250 PIPELINING",
        "S: 250 8BITMIME",
        "S: 250 SMTPUTF8",
        "S: 250 ENHANCEDSTATUSCODES",
        "S: 250 SIZE 26214400",
        *once,
        *once,
        "C: QUIT",
    ]


@pytest.mark.parametrize(
    ("mechanism", "exchange"),
    [
        ("PLAIN", ["C: AUTH PLAIN ********", "S: 235 2.7.0"]),
        (
            "LOGIN",
            [
                *("C: AUTH LOGIN ********", "S: 334 ", "C: ********", "S: 334 "),
                *("C: ********", "S: 235 2.7.0"),
            ],
        ),
        ("CRAM-MD5", ["C: AUTH CRAM-MD5 ********", "S: 334 ", "C: ********", "S: 235 2.7.0"]),
        ("XOAUTH2", ["C: AUTH XOAUTH2 ********", "S: 235 2.7.0"]),
        (
            "SCRAM-SHA-256",
            [
                *("C: AUTH SCRAM-SHA-256 ********", "S: 334 ", "C: ********", "S: 334 "),
                *("C: ********", "S: 235 2.7.0"),
            ],
        ),
    ],
)
def test_an_exchange_is_told_by_its_mechanism_and_codes(
    tm, make_mailer, lines, mechanism, exchange
):
    with ScriptedServer(credentials={"ann": "s3cret"}) as server:
        url = f"smtp://ann:s3cret@127.0.0.1:{server.port}?auth_in_clear=yes&auth={mechanism}"
        assert commit(tm, make_mailer(url), ONE).statuses == ["accepted"]
    found = lines()
    begin = next(n for n, line in enumerate(found) if line.startswith("C: AUTH"))
    assert found[begin : begin + len(exchange)] == exchange
    assert found[begin + len(exchange)].startswith("C: MAIL")


@pytest.mark.parametrize("reply", ["535 5.7.8 {}", "454 4.7.0 {}", "334 {}"])
def test_what_a_server_says_of_a_login_is_not_in_it(tm, make_mailer, lines, reply):
    with ScriptedServer(credentials={"ann": "other"}) as server:
        server.on("AUTH", reply.format(base64.b64encode(b"s3cret").decode() + " s3cret"))
        url = f"smtp://ann:s3cret@127.0.0.1:{server.port}?auth_in_clear=yes&auth=PLAIN"
        assert commit(tm, make_mailer(url), ONE).statuses == ["unsent"]
    code, *status = reply.split()[:-1]
    assert f"S: {code} {''.join(status)}" in lines()
    assert not [line for line in lines() if "s3cret" in line or "czNjcmV0" in line]


def test_a_server_that_echoes_the_password_later_is_blanked(tm, make_mailer, lines):
    with ScriptedServer(credentials={"ann": "s3cret"}) as server:
        server.on("RCPT", "550 5.1.1 s3cret is no user\nnor is czNjcmV0")
        url = f"smtp://ann:s3cret@127.0.0.1:{server.port}?auth_in_clear=yes"
        ended = commit(tm, make_mailer(url), ONE)
    assert "S: 550 5.1.1 ******** is no user" in lines()
    assert str(ended.outcomes[0].reply) == "550 5.1.1 ******** is no user nor is ********"
    assert ended.outcomes[0].status == "failed"


def test_control_characters_of_the_server_are_escaped(tm, mailer, server, lines):
    server.on(
        "RCPT", b"550 5.1.1 \x1b[2Jgone\x07\x00 \xe2\x80\xae \xc2\x9b31m \xe2\x80\xa8 \xff \x7f\r\n"
    )
    assert commit(tm, mailer, ONE).statuses == ["failed"]
    (said,) = [line for line in lines() if line.startswith("S: 550")]
    for escaped in ("x1b[2J", "x07", "x00", "u202e", "x9b31m", "u2028", "xff", "x7f"):
        assert "\\" + escaped in said


def test_so_are_those_of_a_line_that_is_no_reply(tm, mailer, server, caplog):
    caplog.set_level(logging.DEBUG)
    server.on("connect", b"\x1b[2JSSH-2.0-evil\r\n")
    ended = commit(tm, mailer, ONE)
    assert "\\x1b[2JSSH" in ended.outcomes[0].reason
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_nothing_is_written_where_nobody_listens(tm, mailer, caplog):
    caplog.set_level(logging.INFO, logger="txmail.smtp")
    assert commit(tm, mailer, ONE).statuses == ["accepted"]
    assert not [r for r in caplog.records if r.name == "txmail.smtp"]


def test_listening_may_begin_at_any_time(tm, mailer, lines, caplog):
    with caplog.at_level(logging.INFO, logger="txmail.smtp"):
        commit(tm, mailer, ONE)
    assert lines() == []
    commit(tm, mailer, ONE)
    assert lines()[0].startswith("C: MAIL")


def test_each_line_of_a_reply_is_one_of_the_log(tm, make_mailer, lines):
    def serve(connected, stopping):
        reader = greeted(connected, b"250-mx\r\n250-\x1b]0;title\x07\r\n250 SIZE\r\n")
        reader.readline()
        connected.sendall(b"451-4.3.0 one\r\n451-4.3.0 \r\n451 4.3.0 three\r\n")
        reader.read()

    with RawServer(serve) as server:
        commit(tm, make_mailer(f"smtp://127.0.0.1:{server.address[1]}"), ONE)
    assert "S: 250 \\x1b]0;title\\x07" in lines()
    assert [line for line in lines() if "451" in line] == [
        *("S: 451 4.3.0 one", "S: 451 4.3.0 ", "S: 451 4.3.0 three")
    ]


def test_what_is_said_within_tls_is_there_too(tm, make_mailer, lines, tmp_path):
    authority = Authority(tmp_path)
    with ScriptedServer(tls_context=authority.server()) as server:
        url = f"smtp://127.0.0.1:{server.port}?tls=required&cafile={authority.cafile}"
        commit(tm, make_mailer(url), ONE)
    found = lines()
    assert found.index("C: STARTTLS") < found.index("S: 220 2.0.0 Ready to start TLS")
    assert [line for line in found if "EHLO" in line] == ["C: EHLO [127.0.0.1]"] * 2
    assert found[-1] == "S: 250 2.0.0 Ok: queued"


def test_the_setting_debug_shows_it(tm, make_mailer, caplog):
    logger = logging.getLogger("txmail.smtp")
    before = logger.level
    try:
        mailer = make_mailer(debug="true")
        commit(tm, mailer, ONE)
    finally:
        logger.setLevel(before)
    assert any(r.name == "txmail.smtp" for r in caplog.records)


def test_a_lost_connection_leaves_what_was_said(tm, mailer, server, lines):
    server.on(".", then(b"250 2.0.0 O", CLOSE))
    assert commit(tm, mailer, ONE).statuses == ["in_doubt"]
    assert lines()[-1] == f"C: (content, {ONE.size} octets)"
