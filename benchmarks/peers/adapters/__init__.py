"""One adapter a peer: what the harness knows of it, and the few lines that set it up, run it and send to it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peers.peer import Peer

NAMES = (
    "howdah",
    "graphile_worker",
    "pgqueuer",
    "pg_boss",
    "oban",
    "chancy",
    "awa",
    "absurd",
    "saq",
    "taskiq_postgres",
    "procrastinate",
    "bullmq",
    "bullmq_redis",
    "bare",
)


def all_peers() -> dict[str, Peer]:
    """Give every peer by its name, Howdah first."""
    peers = (import_module(f"peers.adapters.{name}").PEER for name in NAMES)
    return {peer.name: peer for peer in peers}
