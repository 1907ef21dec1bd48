"""Holds what the caller of `ISession.send` asks for."""

from __future__ import annotations

from dataclasses import dataclass

from .streaming import WINDOW_OCTETS

#: Messages on their way at once by default: few enough for a person to look at when the connection
#: breaks, and enough for most of the speed of a longer window.
WINDOW = 16


@dataclass(frozen=True, slots=True)
class SendRequest:
    """How the envelopes of one call are sent."""

    #: all or nothing: the first outcome that is not `accepted` ends sending
    strict: bool = False
    #: messages that are streamed at once; 0 streams none
    window: int = 0
    #: octets behind which nothing is sent before there is an answer
    octets: int = WINDOW_OCTETS
    #: envelopes that were not taken when sending ends stay in the source, without an outcome
    keep_untaken: bool = False
    #: report as unsent what is left in the source; False if other connections send it
    takes_rest: bool = True
