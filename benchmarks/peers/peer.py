"""What the harness knows of a peer: how it is installed, filled, run, and asked whether it has finished.

Read by the harness and by the peer's own process, so nothing but the standard library is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One peer. Its process side is the module, or the .mjs file, of the same name in adapters/."""

    name: str
    #: What it is installed from, with versions: packages of PyPI, or of npm if it is a Node program.
    requires: tuple[str, ...]
    node: bool = False
    #: Of its adapter, where that is not its name.
    module: str = ""
    #: Its settings where it is fastest, as its documentation recommends them or a search found them.
    best: Settings
    #: Its settings when at most 100 handlers may run at once, or the nearest that it has.
    bounded: Settings | None = None
    #: Instead of `best` where latency is measured.
    latency: Settings = field(default_factory=dict)
    #: One statement that inserts {count} jobs with the payload {payload}, an expression of the number n. None: its own calls fill it.
    fill: str | None = None
    #: A query that is true when no job is unfinished. None: the jobs are not in PostgreSQL.
    finished: str | None
    #: Needs Redis.
    redis: bool = False
    #: Hand-written for this server and no product: a ruler beside the peers.
    ruler: bool = False
    #: Runs in every round of every workload. The others run in the first round only.
    main: bool = False
    #: So many jobs in a second are more than it does: a drain is given fewer jobs.
    slow: int | None = None
    #: What a reader of its figures must know.
    note: str = ""

    @property
    def adapter(self) -> str:
        """The name of its module in adapters/."""
        return self.module or self.name.replace("-", "_")

    def settings(self, form: str) -> Settings:
        """Give the settings for a form: best, bounded or latency."""
        if form == "bounded":
            return self.bounded or self.best
        return {**self.best, **(self.latency if form == "latency" else {})}


def payload(size: int, filler: str, *, failing: str = "false") -> str:
    """Give the SQL expression, in n, of a payload whose JSON text is about `size` bytes.

    The filler does not compress: a large payload is what it says.
    """
    pad = filler[: max(size - 40, 1)]
    return f"jsonb_build_object('n', n, 't', 1.5, 'fails', {failing}, 'pad', '{pad}')"


def filled(peer: Peer, count: int, expression: str) -> str:
    """Give the statement that fills a peer's table."""
    if peer.fill is None:
        raise ValueError(f"{peer.name} is filled by its own calls")
    return peer.fill.replace("{payload}", expression).replace("{count}", str(count))


def pick(peers: Mapping[str, Peer], names: list[str]) -> list[Peer]:
    """Give the named peers, all if none is named. Raises ValueError that says what there is."""
    for name in names:
        if name not in peers:
            raise ValueError(f"{name!r} is no peer; there are {', '.join(peers)}")
    return [peer for name, peer in peers.items() if not names or name in names]
