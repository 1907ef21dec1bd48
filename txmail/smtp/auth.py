"""SASL mechanisms for SMTP AUTH (RFC 4954), without I/O.

A mechanism is asked for its answer to each challenge; it says at the end whether the server has
proved itself, too. Strongest first: SCRAM-SHA-256-PLUS and SCRAM-SHA-256 (RFC 7677), PLAIN
(RFC 4616), LOGIN, CRAM-MD5 (RFC 2195); XOAUTH2 where the secret is a token. AUTH happens over TLS
only, so PLAIN over a verified connection is stronger than CRAM-MD5, for which the server has to
keep the password in clear.

Passwords are revealed inside the one expression that needs them: no frame of ours keeps them in a
variable that a traceback with locals would show.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from collections.abc import Callable, Iterable

from ..exceptions import ConfigurationError, TransportError
from ..reply import Reply

#: All mechanisms, strongest first.
MECHANISMS = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2")
#: What a server may make us compute: RFC 7677 wants at least 4096 iterations.
MIN_ITERATIONS = 4096
MAX_ITERATIONS = 1_000_000

Reveal = Callable[[], str]


class AuthenticationFailed(TransportError):
    """A login failed: ours, or the server's proof that it knows us. A person has to act."""

    def __init__(self, problem: str, reply: Reply | None = None) -> None:
        super().__init__(problem, temporary=False, reply=reply)


class Mechanism:
    """One exchange."""

    name = ""
    #: True if there is something to say before the first challenge (RFC 4954 section 4)
    initial = True

    def __init__(self, user: str, reveal: Reveal) -> None:
        self._user = user
        self._reveal = reveal
        self._steps = 0

    def first(self) -> bytes:
        """What to say before the first challenge. May be asked again."""
        raise NotImplementedError

    def answer(self, challenge: bytes) -> bytes:
        """Our answer to `challenge`, decoded. Raises `AuthenticationFailed`."""
        raise AuthenticationFailed(f"{self.name}: the server wants more than there is")

    def finish(self) -> None:
        """Called on 235. Raises `AuthenticationFailed` if the server has not proved itself."""

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Plain(Mechanism):
    """RFC 4616."""

    name = "PLAIN"

    def first(self) -> bytes:
        return b"\0" + self._user.encode() + b"\0" + self._reveal().encode()


class Login(Mechanism):
    """Two prompts, whose text is not read."""

    name = "LOGIN"
    initial = False

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

    def first(self) -> bytes:
        return f"user={self._user}\1auth=Bearer ".encode() + self._reveal().encode() + b"\1\1"

    def answer(self, challenge: bytes) -> bytes:
        self._steps += 1
        # The challenge says what is wrong with the token; the server waits for an empty answer.
        return b"" if self._steps == 1 else super().answer(challenge)


class Scram(Mechanism):
    """SCRAM-SHA-256 (RFC 5802, RFC 7677); with channel binding if `binding` is given.

    `binding` is the name of a channel binding type and its data, such as ``tls-unique``
    (RFC 5929). Where it would be possible and the server did not offer it, `unoffered` says so
    under the protection of the proof: a server that did knows then that somebody took the offer
    away (RFC 5802 section 6).
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
        fields = _fields(challenge)
        nonce, salt = fields.get(b"r", b""), _decoded(fields.get(b"s", b""))
        count = fields.get(b"i", b"")
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
        fields = _fields(challenge)
        if b"e" in fields:
            raise AuthenticationFailed("SCRAM: the server does not accept our proof")
        signature = _decoded(fields.get(b"v", b""))
        if not self._expected or not hmac.compare_digest(signature, self._expected):
            raise AuthenticationFailed("SCRAM: the server does not know the password either")
        self._proved = True

    def finish(self) -> None:
        if not self._proved:
            raise AuthenticationFailed("SCRAM: the server has not proved that it knows us")


def choose(offered: Iterable[str], configured: str | None, *, token: bool, binding: bool) -> str:
    """The one mechanism to use: the `configured` one, or the strongest of those `offered`.

    `token` says that the secret is a token, `binding` that channel binding is possible. Raises a
    permanent `TransportError` if there is none.
    """
    available = {name.upper() for name in offered}
    if configured is not None:
        if configured not in available:
            raise TransportError(f"the server does not offer {configured}", temporary=False)
        if configured.endswith("-PLUS") and not binding:
            raise TransportError(f"{configured} needs TLS 1.2 here", temporary=False)
        return configured
    for name in MECHANISMS:
        if (name == "XOAUTH2") is not token or (name.endswith("-PLUS") and not binding):
            continue
        if name in available:
            return name
    raise TransportError("the server offers no authentication that we know", temporary=False)


def check_mechanism(name: str, field: str) -> str:
    """`name` in upper case, if we know it. Raises `ConfigurationError`."""
    if name.upper() not in MECHANISMS:
        raise ConfigurationError(f"one of {', '.join(MECHANISMS)} is needed", field=field)
    return name.upper()


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
    """`text` prepared as RFC 4013 says, None for what it prohibits. Raises nothing: see above."""
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


def _fields(message: bytes) -> dict[bytes, bytes]:
    pairs = [part.partition(b"=") for part in message.split(b",")]
    return {key: value for key, mark, value in pairs if mark}


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
