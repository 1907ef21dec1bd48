"""Opens a connection as the options say: greeting, EHLO, TLS and login.

The handshake drives the conversations of `opening` over a stream. It gives the password to a server
that has proved who it is, and to no other (CWE-295).
"""

from __future__ import annotations

import ssl

from ..exceptions import TransportError
from ..secret import Secret
from .driver import Driver
from .extensions import Extensions
from .opening import Opening
from .options import Options
from .protocol import Protocol
from .stream import Stream
from .tls import SpeaksInClear, TlsMode


class Handshake:
    """Opens one connection, over a stream that is connected."""

    def __init__(
        self, stream: Stream, protocol: Protocol, driver: Driver, options: Options, name: str
    ) -> None:
        """`name` is the client's name in EHLO (RFC 5321 section 4.1.1.1)."""
        self._stream = stream
        self._protocol = protocol
        self._driver = driver
        self._options = options
        self._opening = Opening(protocol, options, name)

    def run(self, tls: ssl.SSLContext | None, password: Secret | None) -> Extensions:
        """Open the connection; the extensions that the server offers.

        See `txmail.smtp.connection.Connection.greet`. Raises `TransportError`, or
        `ConfigurationError` if the source of the password has none any more.
        """
        opening, run = self._opening, self._driver.run
        password = self._reveal(password)
        if self._options.tls is TlsMode.IMPLICIT:
            self._encrypt(tls)
        run(opening.greeting())
        run(opening.introduction())
        if self._starttls_is_due(opening.extensions):
            run(opening.starttls())
            self._encrypt(tls)
            run(opening.introduction())
        if password is not None:
            self._check_safe_for_credentials()
            run(opening.authentication(password, self._stream.channel_binding()))
        return opening.extensions

    def _reveal(self, given: Secret | None) -> Secret | None:
        """The password, asked once for each connection: a token may differ the next time.

        It is asked before anything is read, so that it can be censored: a server that got it on
        another connection may repeat it in its greeting.
        """
        given, account = given or self._options.password, self._options.account
        if given is None:
            return None
        password = Secret(given.reveal(account))
        self._protocol.censor.hide(password.reveal(account))
        return password

    def _starttls_is_due(self, extensions: Extensions) -> bool:
        options = self._options
        if options.tls is TlsMode.REQUIRED and not extensions.starttls:
            raise TransportError(f"{options.name} does not offer STARTTLS, and TLS is required")
        wanted = options.tls in (TlsMode.REQUIRED, TlsMode.OPPORTUNISTIC)
        return wanted and extensions.starttls

    def _encrypt(self, tls: ssl.SSLContext | None) -> None:
        assert tls is not None
        options = self._options
        self._driver.expect()
        try:
            self._stream.start_tls(tls, options.tls_name, self._driver.left)
        except TransportError as error:
            implicit = options.tls is TlsMode.IMPLICIT
            if implicit and getattr(error.__cause__, "reason", None) == "WRONG_VERSION_NUMBER":
                raise SpeaksInClear(options.name) from error.__cause__
            raise

    def _check_safe_for_credentials(self) -> None:
        options, stream = self._options, self._stream
        if options.auth_in_clear:
            return
        if not stream.encrypted:
            raise TransportError(
                f"{options.name} offers no encryption, and {options.account} does not log in in "
                "clear",
                temporary=False,
            )
        if not (options.tls.verified or stream.loopback):
            raise TransportError(
                f"{options.name} has not proved who it is, and {options.account} does not log in "
                "with an unknown server: say tls=required",
                temporary=False,
            )
