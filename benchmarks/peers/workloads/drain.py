"""Jobs that do nothing, as fast as each peer can: a queue of 20,000 and one of 100,000, one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peers.drain import drain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "drain"
TITLE = "Drain of jobs that do nothing, each peer at its best"
ROUNDS = 3


def takes(_peer: Peer) -> bool:
    """Take all of them."""
    return True


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Drain the small queue, and the large one if the peer is among the fastest; a slow one gets fewer."""
    for count in bench.of(quick=(20_000,), standard=(20_000, 100_000) if peer.main else (20_000,)):
        yield {"case": f"{count:,} jobs", **await drain(bench, peer, peer.slow or count)}
