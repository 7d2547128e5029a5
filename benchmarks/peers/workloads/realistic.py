"""Handlers and payloads as applications have them.

Waiting and SQL run 100 at once in every peer; payloads and failures do nothing but that, each peer at its best. The jobs that
fail once are a quarter of the first fifth: their retries fall due while there is still work, so that no peer's pause before a retry
counts for more than another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peers.drain import drain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "realistic"
TITLE = "Realistic jobs"
ROUNDS = 3
CASES: dict[str, dict[str, Any]] = {
    "a small UPDATE each": {"handler": "sql", "form": "bounded"},
    "5 ms of waiting each": {"handler": "wait", "form": "bounded"},
    "256-byte payloads": {"size": 256},
    "4 KiB payloads": {"size": 4096},
    "5 % fail once and are retried": {"handler": "failing"},
}
PEERS = ("howdah", "graphile-worker", "pgqueuer", "pg-boss", "oban")


def takes(peer: Peer) -> bool:
    """Tell whether it is one of the fastest, or oban, which is most like Howdah."""
    return peer.name in PEERS


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Drain a queue of each case."""
    for case, wishes in CASES.items():
        if not bench.wants(case):
            continue
        count = bench.of(quick=5_000, standard=20_000)
        failing = "false"
        if wishes.get("handler") == "failing":
            count = bench.of(quick=20_000, standard=100_000)
            failing = f"n <= {count // 5} and n % 4 = 0"
        yield {"case": case, **await drain(bench, peer, count, failing=failing, **wishes)}
