"""The same drain with at most 100 handlers running at once in every peer, as anyone sets it whose handlers do something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peers.drain import drain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peers.bench import Bench, Figures
    from peers.peer import Peer

NAME = "bounded"
TITLE = "Drain with at most 100 handlers running at once"
ROUNDS = 3


def takes(peer: Peer) -> bool:
    """Take those that can be bounded, and are not much slower than that anyway."""
    return peer.bounded is not None and peer.slow is None


async def run(bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
    """Drain the small queue, and the large one if the peer is among the fastest."""
    for count in bench.of(quick=(20_000,), standard=(20_000, 100_000) if peer.main else (20_000,)):
        yield {"case": f"{count:,} jobs", **await drain(bench, peer, count, form="bounded")}
