"""What a witness says of a transaction after a crash."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Answer(StrEnum):
    """Whether a transaction committed."""

    YES = "yes"
    NO = "no"
    #: nobody can say: a person has to decide
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class WitnessAnswer:
    """An answer, and why."""

    answer: Answer
    reason: str = ""
