"""Sessions made from a seed: what is sent, over which connections, and how the server behaves."""

from __future__ import annotations

import random

from commits import note
from fuzzing import ENDS, OFFERS, Move, play

CODES = (200, 220, 221, 235, 250, 251, 252, 299, 334, 354, 399, 421, 450, 451, 452, 454, 499)
CODES += (500, 501, 502, 503, 530, 535, 550, 551, 552, 553, 554, 555, 599)
DETAILS = ("", "2.0.0 ", "4.5.3 ", "4.7.0 ", "4.7.1 ", "5.1.1 ", "5.2.2 ", "5.4.5 ", "5.7.1 ", "5.")
#: what is no reply at all, or not the whole of one
NONSENSE = (
    *(b"", b"2", b"25", b"250", b"250\r", b"250 Ok\n", b"\r\n", b"\n", b"\0" * 9, b"99 x\r\n"),
    *(b"2_5 x\r\n", b"600 x\r\n", b"250x\r\n", b"250-a\r\n251 b\r\n", b"250-\r\n", b"250 a\r\r\n"),
    *(b"250" + b"x" * 5000, b"250-x\r\n" * 200 + b"250 x\r\n", b"\xff\xfe2\x005\x00", b"-1 x\r\n"),
)


def seeded_session(tm, seed, counts):
    """Play the session of `seed`; raises if an account is wrong or an error is not ours."""
    chance = random.Random(seed)
    nasty = chance.choice((0.02, 0.1, 0.3))
    pieces = chance.choice((None, 1, 7, 100))

    def size(octets):
        if pieces is None or chance.random() < 0.3:
            return octets
        return min(octets, chance.randrange(pieces + 1))

    offers = tuple(offer for offer in OFFERS if chance.random() < 0.8)
    transactions = [
        [_envelope(chance, f"s{seed}t{number}n{index}") for index in range(chance.randint(1, 4))]
        for number in range(chance.randint(1, 3))
    ]
    transactions.append([note(f"s{seed}last")])  # the server is honest when it comes
    moves = (_move(chance, nasty) for _ in range(400))
    preflight = chance.choice(("auto", "auto", "never", "always"))
    window, worker = chance.randint(1, 8), chance.random() < 0.3
    play(*(tm, moves, size, offers, preflight, transactions, counts), window=window, worker=worker)


def _envelope(chance, name):
    lines = [chance.choice((b".", b"..", b".x", b"", b"text", b"y" * 990)) for _ in range(5)]
    recipients = [f"r{chance.randrange(6)}@example.net" for _ in range(chance.choice((1, 1, 1, 4)))]
    body = b"\r\n".join(lines) + b"\r\n"
    if chance.random() < 0.1:
        body = "süß\r\n".encode()
    return note(name, body=body, recipients=recipients)


def _move(chance, nasty):
    if chance.random() >= nasty:
        return Move()
    kind = chance.random()
    said, extra, end, early = None, b"", "", b""
    if kind < 0.45:
        said = _reply(chance)
    elif kind < 0.6:
        said = chance.choice(NONSENSE)
    elif kind < 0.65:
        said = chance.randbytes(chance.randrange(40))
    elif kind < 0.8:
        extra = chance.choice((_reply(chance), chance.choice(NONSENSE)))
    elif kind < 0.85:
        early = chance.choice((_reply(chance), b"250 Ok\r\n", b"250 Ok\r\n", b"554 no\r\n"))
    if kind >= 0.85 or chance.random() < 0.2:
        end = chance.choice(ENDS)
        said = chance.choice((said, b"", _reply(chance)))
    return Move(said, extra, end, early)


def _reply(chance):
    code, text = chance.choice(CODES), chance.choice(DETAILS).encode() + b"said"
    if chance.random() < 0.2:
        return b"%d-%s\r\n%d %s\r\n" % (code, text, code, text)
    return b"%d %s\r\n" % (code, text)
