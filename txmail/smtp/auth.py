"""Answers the challenges of SMTP AUTH (RFC 4954) with SASL mechanisms. No I/O.

A mechanism answers each challenge, and checks at the end whether the server has proved itself.
The strongest come first: SCRAM-SHA-256-PLUS and SCRAM-SHA-256 (RFC 7677), PLAIN (RFC 4616), LOGIN,
CRAM-MD5 (RFC 2195); XOAUTH2 is for a token. AUTH happens over TLS only, so that PLAIN over a
verified connection is stronger than CRAM-MD5, for which the server keeps the password in clear.

If a server offers a mechanism and then does not know it (500, 502, 504), the client may try another
one that shows the server no more than the first: PLAIN and LOGIN replace each other. The client
tries nothing weaker unless the settings name it, because an attacker in between could ask for that.

A password is revealed inside the one expression that needs it: no frame keeps it in a variable that
a traceback with locals would show.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from ..common.ascii_text import ascii_strip, ascii_upper
from ..common.shown import printable
from ..exceptions import ConfigurationError, TransportError
from ..reply import Reply

#: All mechanisms, strongest first.
MECHANISMS = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2")
#: Mechanisms for a password that need no channel binding.
_UNBOUND = tuple(m for m in MECHANISMS if m != "XOAUTH2" and not m.endswith("-PLUS"))
#: Mechanisms that show a server the same secret in the same way.
_ALIKE = ("PLAIN", "LOGIN")
#: Characters of a server's offer that an error repeats.
_ECHO_OFFER = 200
#: Iterations that a server may ask for. RFC 7677 wants at least 4096.
MIN_ITERATIONS = 4096
MAX_ITERATIONS = 1_000_000

#: A letter and a value, which is not empty and has no NUL (RFC 5802 section 7).
_ATTRIBUTE = re.compile(rb"([A-Za-z])=([^,\0]+)")

Reveal = Callable[[], str]


class AuthenticationFailed(TransportError):
    """The login failed, or the server did not prove that it knows us. A person has to act."""

    def __init__(self, problem: str, reply: Reply | None = None) -> None:
        super().__init__(problem, temporary=False, reply=reply)


class Mechanism:
    """One AUTH exchange."""

    name = ""
    #: True if the client speaks before the first challenge (RFC 4954 section 4)
    initial = True
    #: False if an answer does not depend on the challenge, which may then be anything
    reads_challenges = True

    def __init__(self, user: str, reveal: Reveal) -> None:
        self._user = user
        self._reveal = reveal
        self._steps = 0

    def first(self) -> bytes:
        """The octets to send before the first challenge. May be called again."""
        raise NotImplementedError

    def answer(self, challenge: bytes) -> bytes:
        """The answer to `challenge`, both without base64. Raises `AuthenticationFailed`."""
        raise AuthenticationFailed(f"{self.name}: the server wants more than there is")

    def finish(self) -> None:
        """Check the exchange, after a 235.

        Raises `AuthenticationFailed` if the server has not proved itself.
        """

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Plain(Mechanism):
    """RFC 4616."""

    name = "PLAIN"

    def first(self) -> bytes:
        return b"\0" + self._user.encode() + b"\0" + self._reveal().encode()


class Login(Mechanism):
    """Answers two prompts without reading them: servers write any text, also without base64."""

    name = "LOGIN"
    initial = False
    reads_challenges = False

    def answer(self, challenge: bytes) -> bytes:
        self._steps += 1
        if self._steps == 1:
            return self._user.encode()
        return self._reveal().encode() if self._steps == 2 else super().answer(challenge)


class CramMd5(Mechanism):
    """RFC 2195."""

    name = "CRAM-MD5"
    initial = False

    def answer(self, challenge: bytes) -> bytes:
        self._steps += 1
        if self._steps > 1 or not challenge:
            return super().answer(challenge)
        digest = hmac.new(self._reveal().encode(), challenge, hashlib.md5).hexdigest()
        return f"{self._user} {digest}".encode()


class XOAuth2(Mechanism):
    """A bearer token in place of a password."""

    name = "XOAUTH2"
    reads_challenges = False

    def first(self) -> bytes:
        return f"user={self._user}\1auth=Bearer ".encode() + self._reveal().encode() + b"\1\1"

    def answer(self, challenge: bytes) -> bytes:
        self._steps += 1
        # The challenge says what is wrong with the token; the server waits for an empty answer.
        return b"" if self._steps == 1 else super().answer(challenge)


class Scram(Mechanism):
    """SCRAM-SHA-256 (RFC 5802, RFC 7677); with channel binding if `binding` is given.

    `binding` is the name of a channel binding type and its data, such as ``tls-unique``
    (RFC 5929). `unoffered` is True if the client could use channel binding and the server did not
    offer it. The proof covers that: a server that did offer it learns that an attacker took the
    offer away (RFC 5802 section 6).
    """

    name = "SCRAM-SHA-256"

    def __init__(
        self,
        user: str,
        reveal: Reveal,
        binding: tuple[str, bytes] | None = None,
        *,
        unoffered: bool = False,
    ) -> None:
        super().__init__(user, reveal)
        self._header = b"y,," if unoffered else b"n,,"
        if binding is not None:
            self._header = f"p={binding[0]},,".encode()
        self._binding = b"" if binding is None else binding[1]
        if binding is not None:
            self.name = "SCRAM-SHA-256-PLUS"
        self._nonce = base64.b64encode(secrets.token_bytes(24))
        name = saslprep(user)
        if name is None:
            raise ConfigurationError("it has characters that SASL prohibits", field="username")
        self._first = b"n=" + _escaped(name) + b",r=" + self._nonce
        self._expected = b""
        self._proved = False

    def first(self) -> bytes:
        return self._header + self._first

    def answer(self, challenge: bytes) -> bytes:
        self._steps += 1
        if self._steps == 1:
            return self._proof(challenge)
        if self._steps == 2:
            self._verify(challenge)
            return b""
        return super().answer(challenge)

    def _proof(self, challenge: bytes) -> bytes:
        fields = _attributes(challenge)
        if [name for name, _ in fields[:3]] != [b"r", b"s", b"i"]:
            raise AuthenticationFailed("SCRAM: the server's first message is not valid")
        nonce, salt, count = fields[0][1], _decoded(fields[1][1]), fields[2][1]
        iterations = int(count) if count.isdigit() and len(count) < 9 else 0
        if not nonce.startswith(self._nonce) or len(nonce) <= len(self._nonce) or not salt:
            raise AuthenticationFailed("SCRAM: the server's first message is not valid")
        if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise AuthenticationFailed(
                f"SCRAM: not {MIN_ITERATIONS} to {MAX_ITERATIONS} iterations"
            )
        bound = base64.b64encode(self._header + self._binding)
        final = b"c=" + bound + b",r=" + nonce
        signed = self._first + b"," + challenge + b"," + final
        salted = hashlib.pbkdf2_hmac("sha256", self._prepared(), salt, iterations)
        key = _mac(salted, b"Client Key")
        signature = _mac(hashlib.sha256(key).digest(), signed)
        self._expected = _mac(_mac(salted, b"Server Key"), signed)
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        return final + b",p=" + base64.b64encode(proof)

    def _prepared(self) -> bytes:
        prepared = saslprep(self._reveal())
        if prepared is None:
            raise ConfigurationError("it has characters that SASL prohibits", field="password")
        return prepared.encode()

    def _verify(self, challenge: bytes) -> None:
        found = _attributes(challenge)
        name, value = found[0]
        if b"e" in dict(found):
            raise AuthenticationFailed("SCRAM: the server does not accept our proof")
        signature = _decoded(value) if name == b"v" else b""
        if not self._expected or not hmac.compare_digest(signature, self._expected):
            raise AuthenticationFailed("SCRAM: the server does not know the password either")
        self._proved = True

    def finish(self) -> None:
        if not self._proved:
            raise AuthenticationFailed("SCRAM: the server has not proved that it knows us")


def choose(
    offered: Iterable[str],
    configured: str | None,
    *,
    token: bool,
    binding: bool,
    refused: Sequence[str] = (),
) -> str:
    """The mechanism to use: the first `configured` one that the server has, or the strongest.

    `configured` has names with commas between (see `check_mechanisms`); None takes the strongest
    of those `offered`. `token` is True if the secret is a token, `binding` if channel binding is
    possible. `refused` has the mechanisms that the client has tried and the server did not know.

    Raises a permanent `TransportError`, which lists the offer, if no mechanism is left.
    """
    available = {ascii_upper(name) for name in offered if name.isascii()}
    possible = [
        name
        for name in (MECHANISMS if configured is None else configured.split(","))
        if name in available - {*refused} and (binding or not name.endswith("-PLUS"))
    ]
    if configured is None:
        possible = [name for name in possible if (name == "XOAUTH2") is token]
    if configured is None and refused:
        possible = [name for name in possible if {name, *refused} <= {*_ALIKE}]
    if possible:
        return possible[0]
    raise TransportError(_none(available, configured, refused), temporary=False)


def _none(available: set[str], configured: str | None, refused: Sequence[str]) -> str:
    """The reason why no mechanism is left, and what a person can do about it."""
    if not available:
        return "the server offers no authentication"
    listed = printable(", ".join(sorted(available)))
    listed = listed if len(listed) <= _ECHO_OFFER else listed[:_ECHO_OFFER] + "..."
    if refused:
        left = [m for m in _UNBOUND if m in available - {*refused}]
        advice = f", as in auth={left[0]}" if left else ""
        return f"the server offers {listed}; auth= names the ones to use{advice}"
    if configured is not None:
        bound = [m for m in configured.split(",") if m in available]
        if bound:
            return f"{bound[0]} needs TLS 1.2 here; the server offers {listed}, see auth="
        return f"the server does not offer {configured}, which auth= names, but {listed}"
    if "XOAUTH2" in available:
        listed += "; for a token in place of a password say auth=XOAUTH2"
    return f"the server offers no mechanism that txmail knows, but {listed}"


def check_mechanisms(names: str, field: str) -> str:
    """`names` in upper case: one mechanism, or several with commas between.

    Raises `ConfigurationError` for a name that is not in `MECHANISMS`.
    """
    found = [ascii_upper(ascii_strip(name)) for name in names.split(",")]
    if not (names.isascii() and {*found} <= {*MECHANISMS} and len({*found}) == len(found)):
        raise ConfigurationError(
            f"one of {', '.join(MECHANISMS)} is needed, or several with commas between", field=field
        )
    return ",".join(found)


def mechanism_of(
    name: str,
    user: str,
    reveal: Reveal,
    binding: tuple[str, bytes] | None = None,
    offered: Iterable[str] = (),
) -> Mechanism:
    """A new exchange of the mechanism `name`, which was chosen among those `offered`."""
    if name == "SCRAM-SHA-256-PLUS":
        return Scram(user, reveal, binding)
    if name == "SCRAM-SHA-256":
        unoffered = binding is not None and "SCRAM-SHA-256-PLUS" not in offered
        return Scram(user, reveal, unoffered=unoffered)
    kinds: dict[str, type[Mechanism]] = {k.name: k for k in (Plain, Login, CramMd5, XOAuth2)}
    return kinds[name](user, reveal)


#: RFC 4013 section 2.3
_PROHIBITED = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def saslprep(text: str) -> str | None:
    """`text` prepared as RFC 4013 says; None if it has a prohibited character.

    Raises nothing: a traceback could show the password.
    """
    mapped = [" " if stringprep.in_table_c12(c) else c for c in text]
    text = "".join([c for c in mapped if not stringprep.in_table_b1(c)])
    text = unicodedata.ucd_3_2_0.normalize("NFKC", text)
    if any(table(c) for c in text for table in _PROHIBITED):
        return None
    right_to_left = [stringprep.in_table_d1(c) for c in text]
    if any(right_to_left):
        both = any(stringprep.in_table_d2(c) for c in text)
        if both or not (right_to_left[0] and right_to_left[-1]):
            return None
    return text


def _escaped(name: str) -> bytes:
    return name.replace("=", "=3D").replace(",", "=2C").encode()


def _attributes(message: bytes) -> list[tuple[bytes, bytes]]:
    """The attributes of a server's message, in their order (RFC 5802 sections 5.1 and 7).

    Raises `AuthenticationFailed` for a malformed attribute, for one that comes twice, and for
    ``m``: a mandatory extension, of which this client knows none.
    """
    found = [_ATTRIBUTE.fullmatch(part) for part in message.split(b",")]
    read = [(each[1], each[2]) for each in found if each is not None]
    names = {name for name, _ in read}
    if len(names) < len(found):
        raise AuthenticationFailed("SCRAM: the server's message is not valid")
    if b"m" in names:
        raise AuthenticationFailed("SCRAM: the server wants an extension that txmail does not have")
    return read


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
