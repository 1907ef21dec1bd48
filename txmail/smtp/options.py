"""What a connection is asked to be."""

from __future__ import annotations

from dataclasses import dataclass

from ..secret import Secret
from .tls import NO_FILES, TlsFiles, TlsMode

#: Seconds to wait for a reply, and for a connection, where nothing else is said. RFC 5321
#: section 4.5.3.2 allows servers minutes; within a transaction `commit_timeout` is nearer anyway.
TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that makes two connections unequal: the key of a pool."""

    host: str
    port: int = 25
    #: seconds for each reply
    timeout: float = TIMEOUT
    #: our own name in EHLO (RFC 5321 section 4.1.4): a domain, or an address literal; None is the
    #: literal of the address we connect from
    local_hostname: str | None = None
    #: use PIPELINING where it is offered
    pipelining: bool = True
    #: stream messages with BDAT where CHUNKING and PIPELINING are offered (RFC 3030)
    chunking: bool = True
    #: messages that may be on their way at once, and so in doubt, on one connection; None leaves
    #: it to the caller of `ISession.send`
    window: int | None = None
    #: messages after which a connection is not used any more; None leaves it to the pool
    messages: int | None = None
    tls: TlsMode = TlsMode.OFF
    files: TlsFiles = NO_FILES
    #: certificates have to be exactly as RFC 5280 wants them
    x509_strict: bool = True
    #: who we are; empty for nobody
    user: str = ""
    password: Secret | None = None
    #: the SASL mechanisms to use, with commas between; None is the strongest that is offered
    auth: str | None = None
    #: authenticate although nothing is encrypted, or with a server that has proved nothing
    auth_in_clear: bool = False

    @property
    def name(self) -> str:
        """Printable name of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "smtps" if self.tls is TlsMode.IMPLICIT else "smtp"
        return f"{scheme}://{host}:{self.port}"

    @property
    def tls_name(self) -> str:
        """The name or address that a certificate has to have.

        It has neither the zone of an address nor the dot at the end of a name (RFC 9525 section 3).
        """
        return self.host.partition("%")[0].removesuffix(".")

    @property
    def account(self) -> str:
        """Printable name of whose password it is."""
        return f"{self.user}@{self.host}"
