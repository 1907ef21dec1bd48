"""SASL mechanisms, without a server: the RFCs' own examples, and servers that lie."""

import base64
import hashlib
import hmac
import traceback

import pytest

from txmail.exceptions import ConfigurationError, TransportError
from txmail.smtp import auth
from txmail.smtp.auth import AuthenticationFailed, Scram, choose, mechanism_of, saslprep

PASSWORD = "pencil"


def exchange(name, user="user", password=PASSWORD, binding=None):
    return mechanism_of(name, user, lambda: password, binding)


def scram_from_rfc_7677(monkeypatch):
    nonce = b"rOprNGfwEbeRWgbNEkqO"
    monkeypatch.setattr(auth.secrets, "token_bytes", lambda count: base64.b64decode(nonce))
    return exchange("SCRAM-SHA-256")


def test_scram_speaks_as_in_the_example_of_rfc_7677(monkeypatch):
    scram = scram_from_rfc_7677(monkeypatch)
    assert scram.first() == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    challenge = (
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    assert scram.answer(challenge) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert scram.answer(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=") == b""
    scram.finish()


@pytest.mark.parametrize(
    "challenge",
    [
        b"r=somebodyelse,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r=rOprNGfwEbeRWgbNEkqOx,s=,i=4096",
        b"r=rOprNGfwEbeRWgbNEkqOx,s=!!,i=4096",
        b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1",
        b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=999999999",
        b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=-4096",
        b"",
        b"e=other-error",
    ],
)
def test_scram_gives_no_proof_to_a_server_that_does_not_follow_the_rules(monkeypatch, challenge):
    scram = scram_from_rfc_7677(monkeypatch)
    scram.first()
    with pytest.raises(AuthenticationFailed):
        scram.answer(challenge)


def test_scram_does_not_trust_a_server_that_does_not_know_the_password(monkeypatch):
    scram = scram_from_rfc_7677(monkeypatch)
    scram.first()
    scram.answer(b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
    with pytest.raises(AuthenticationFailed):
        scram.finish()  # 235 without a proof
    with pytest.raises(AuthenticationFailed):
        scram.answer(b"v=" + base64.b64encode(b"\0" * 32))
    with pytest.raises(AuthenticationFailed):
        scram.finish()


def test_scram_plus_binds_to_the_channel():
    scram = exchange("SCRAM-SHA-256-PLUS", binding=("tls-unique", b"\1\2\3"))
    first = scram.first()
    assert first.startswith(b"p=tls-unique,,n=user,r=")
    nonce = first.rpartition(b"r=")[2]
    final = scram.answer(b"r=" + nonce + b"x,s=c2FsdA==,i=4096")
    bound = final.partition(b",")[0].removeprefix(b"c=")
    assert base64.b64decode(bound) == b"p=tls-unique,,\1\2\3"
    assert scram.name == "SCRAM-SHA-256-PLUS"


def test_scram_says_that_it_saw_no_offer_of_the_binding_it_could_do():
    binding = ("tls-unique", b"\1\2\3")

    def first(offered, bound=binding):
        made = mechanism_of("SCRAM-SHA-256", "user", lambda: PASSWORD, bound, offered)
        return made.first()[:3]

    assert first(["SCRAM-SHA-256"]) == b"y,,"
    # It saw one, and was told to use the other.
    assert first(["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"]) == b"n,,"
    assert first(["SCRAM-SHA-256"], None) == b"n,,"


def test_scram_tells_a_refused_proof_from_a_wrong_one(monkeypatch):
    scram = scram_from_rfc_7677(monkeypatch)
    scram.first()
    scram.answer(b"r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
    with pytest.raises(AuthenticationFailed, match="does not accept our proof"):
        scram.answer(b"e=invalid-proof")


def test_scram_escapes_a_user_name():
    assert b"n=a=2Cb=3Dc," in exchange("SCRAM-SHA-256", "a,b=c").first()


def test_plain_login_xoauth2_and_cram_md5():
    assert exchange("PLAIN").first() == b"\0user\0pencil"
    login = exchange("LOGIN")
    assert [login.answer(b"Username:"), login.answer(b"Password:")] == [b"user", b"pencil"]
    assert exchange("XOAUTH2").first() == b"user=user\1auth=Bearer pencil\1\1"
    challenge = b"<1896.697170952@postoffice.reston.mci.net>"
    # The example of RFC 2195.
    answer = exchange("CRAM-MD5", "tim", "tanstaaftanstaaf").answer(challenge)
    assert answer == b"tim b913a602c7eda7a495b4e6e7334d3890"
    assert hmac.new(b"tanstaaftanstaaf", challenge, hashlib.md5).hexdigest() in answer.decode()


def test_a_token_that_was_refused_is_answered_with_nothing():
    xoauth2 = exchange("XOAUTH2")
    xoauth2.first()
    assert xoauth2.answer(b'{"status":"401"}') == b""


@pytest.mark.parametrize("name", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_a_server_that_asks_on_and_on_is_left(name):
    mechanism = exchange(name)
    answers = (mechanism.answer(b"more") for _ in range(3))
    with pytest.raises(AuthenticationFailed):
        list(answers)


OFFERED = ["CRAM-MD5", "login", "PLAIN", "XOAUTH2", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "NTLM"]


@pytest.mark.parametrize(
    ("without", "options", "chosen"),
    [
        ([], {"binding": True}, "SCRAM-SHA-256-PLUS"),
        ([], {"binding": False}, "SCRAM-SHA-256"),
        (["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"], {}, "PLAIN"),
        (["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "PLAIN"], {}, "LOGIN"),
        (["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "PLAIN", "login"], {}, "CRAM-MD5"),
        ([], {"token": True}, "XOAUTH2"),
        ([], {"configured": "LOGIN"}, "LOGIN"),
    ],
)
def test_the_strongest_mechanism_offered_is_chosen_or_the_one_configured(without, options, chosen):
    offered = [name for name in OFFERED if name not in without]
    defaults = {"configured": None, "token": False, "binding": False}
    assert choose(offered, **{**defaults, **options}) == chosen


@pytest.mark.parametrize(
    ("offered", "configured", "token"),
    [
        ([], None, False),
        (["NTLM"], None, False),
        (["PLAIN"], "LOGIN", False),
        (["PLAIN"], None, True),
        (["SCRAM-SHA-256-PLUS", "PLAIN"], "SCRAM-SHA-256-PLUS", False),
    ],
)
def test_no_other_mechanism_is_taken_where_none_fits(offered, configured, token):
    with pytest.raises(TransportError) as caught:
        choose(offered, configured, token=token, binding=False)
    assert not caught.value.temporary


@pytest.mark.parametrize(
    ("text", "prepared"),
    [("I\u00adX", "IX"), ("user", "user"), ("\u00aa", "a"), ("\u2168", "IX"), ("a\u00a0b", "a b")],
)
def test_names_and_passwords_are_prepared_as_in_rfc_4013(text, prepared):
    assert saslprep(text) == prepared


@pytest.mark.parametrize("text", ["\u0007", "\u0627\u0031", "a\u0000", "\ue000"])
def test_what_rfc_4013_prohibits_is_refused_without_being_shown(text):
    assert saslprep(text) is None
    scram = exchange("SCRAM-SHA-256", password=text)
    nonce = scram.first().rpartition(b"r=")[2]
    with pytest.raises(ConfigurationError, match="password") as caught:
        scram.answer(b"r=" + nonce + b"x,s=c2FsdA==,i=4096")
    own = caught.value.__traceback__.tb_next  # without this function, which has it
    shown = traceback.TracebackException(ConfigurationError, caught.value, own, capture_locals=True)
    assert repr(text) not in "".join(shown.format())
    with pytest.raises(ConfigurationError, match="username"):
        exchange("SCRAM-SHA-256", user=text)


def test_a_mechanism_shows_nothing():
    scram = exchange("SCRAM-SHA-256")
    assert PASSWORD not in repr(scram)
    assert PASSWORD not in repr(vars(scram))
    assert isinstance(scram, Scram)
