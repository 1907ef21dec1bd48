"""Twenty thousand sessions with mail servers that misbehave, each made from a number, its seed.

Every session is some transactions over connections without a socket to a server that answers
nonsense, too much, too early, too little or not at all, cuts, floods or falls silent. After each
commit what the client says of every recipient is compared with what went over its connections
(``../tests/support/fuzzing.py``): only our errors; never accepted without a final 2yz in order;
never called unsent, deferred or failed if the message came whole and was not refused; no more in
doubt than the window allows. The last commit of a session is to a server that behaves, and it has
to succeed.

It stops at the first session that is wrong, with its seed: ``--seed N --sessions 1`` repeats it.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time

import transaction
from _harness import HERE, header

# The servers, and what they hold a client to, are a matter of the tests, too.
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
from fuzzing import Counts
from seeded import seeded_session

SESSIONS = 20_000
QUICK = 1_000
#: sessions after which all that is made once has been made, so that memory is measured from there
WARM = 500
#: kilobytes by which the process may grow after that
GROWTH = 32 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--seed", type=int, default=0, help="of the first session")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} sessions")
    options = parser.parse_args()
    sessions = QUICK if options.quick else options.sessions
    header(["txmail", "transaction"])
    logging.getLogger("txmail").setLevel(logging.CRITICAL)  # each refusal would be a line
    tm = transaction.TransactionManager(explicit=False)
    counts = Counts()
    warm = 0
    started = time.perf_counter()
    for number in range(sessions):
        seed = options.seed + number
        try:
            seeded_session(tm, seed, counts)
        except BaseException:
            print(f"\nseed {seed}, after {number} sessions that were right:", flush=True)
            raise
        if number == WARM:
            warm = _kilobytes()
        if number % 2000 == 1999:
            print(f"{number + 1} sessions, {time.perf_counter() - started:.0f} s", flush=True)
    _report(counts, options.seed, time.perf_counter() - started)
    if warm:
        grown = _kilobytes() - warm
        print(f"grown by {grown} KB since session {WARM}")
        if grown > GROWTH:
            raise SystemExit(f"that is more than {GROWTH} KB")


def _kilobytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _report(counts: Counts, seed: int, seconds: float) -> None:
    print(f"\n{counts.sessions} sessions from seed {seed} in {seconds:.0f} s, all accounts right")
    print(f"{counts.commits} commits, {counts.failed} of them failed")
    for status, number in sorted(counts.statuses.items()):
        print(f"{number:>9} {status}")
    print(f"most octets taken from one server: {counts.longest}")


if __name__ == "__main__":
    main()
