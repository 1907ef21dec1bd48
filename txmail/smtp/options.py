"""Holds the options of connections to one server."""

from __future__ import annotations

from dataclasses import dataclass

from ..secret import Secret
from .tls import NO_FILES, TlsFiles, TlsMode

#: Seconds to wait for a reply, and for a connection, by default. RFC 5321 section 4.5.3.2 allows
#: servers minutes; within a transaction `commit_timeout` ends the wait earlier.
TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """One server, and how to connect and talk to it."""

    host: str
    port: int = 25
    #: seconds for each reply
    timeout: float = TIMEOUT
    #: the client's name in EHLO (RFC 5321 section 4.1.4): a domain or an address literal; None is
    #: the literal of the address that the connection comes from
    local_hostname: str | None = None
    #: use PIPELINING where it is offered
    pipelining: bool = True
    #: stream messages with BDAT where CHUNKING and PIPELINING are offered (RFC 3030)
    chunking: bool = True
    #: messages that may be on their way at once, and so in doubt, on one connection; None lets the
    #: caller of `ISession.send` decide
    window: int | None = None
    #: messages after which a connection is retired; None lets the pool decide
    messages: int | None = None
    tls: TlsMode = TlsMode.OFF
    files: TlsFiles = NO_FILES
    #: refuse certificates that are not exactly as RFC 5280 wants them
    x509_strict: bool = True
    #: the user who logs in; empty for no login
    user: str = ""
    password: Secret | None = None
    #: the SASL mechanisms to use, with commas between; None takes the strongest that is offered
    auth: str | None = None
    #: log in although the connection is not encrypted, or the server has proved nothing
    auth_in_clear: bool = False

    @property
    def name(self) -> str:
        """Printable name of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "smtps" if self.tls is TlsMode.IMPLICIT else "smtp"
        return f"{scheme}://{host}:{self.port}"

    @property
    def tls_name(self) -> str:
        """The name or address that a certificate has to name (RFC 9525 section 3).

        The zone of an address, and the dot at the end of a name, are no part of it.
        """
        return self.host.partition("%")[0].removesuffix(".")

    @property
    def account(self) -> str:
        """Printable name of the account that the password belongs to."""
        return f"{self.user}@{self.host}"
