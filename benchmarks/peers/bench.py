"""What a workload is given: the server, the installed peers, how much to do, and where results go."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from peers.install import Installed
    from peers.peer import Peer
    from peers.server import Server

#: What is written down and not shown.
HIDDEN = {"at", "size", "settings", "tenths"}
Size = Literal["quick", "standard", "full"]
Figures = dict[str, Any]


@dataclass
class Bench:
    """One run of the harness."""

    server: Server
    installed: dict[str, Installed]
    size: Size
    results: Path
    redis: str = ""
    #: So many rows instead of each mass of the workload depth.
    mass: int = 0
    #: Of workloads that take long, only the cases in whose names this regular expression is found.
    only: str = ""
    #: Does not compress, the same in every run.
    filler: str = field(default_factory=lambda: _filler(8192))

    def of(self, *, quick: Any, standard: Any, full: Any = None) -> Any:
        """Give what belongs to this run's size."""
        if self.size == "full" and full is not None:
            return full
        return quick if self.size == "quick" else standard

    def wants(self, case: str) -> bool:
        """Tell whether a case was asked for."""
        return re.search(self.only, case) is not None

    async def pause(self, seconds: float) -> None:
        """Let time pass: what is measured is what happens in it."""
        await asyncio.sleep(seconds)

    def free_port(self) -> int:
        """Give a port that nobody uses at this moment."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
            return port

    def keep(self, **record: Any) -> None:
        """Write a result down and show it."""
        record |= {"at": round(time.time(), 1), "load": round(os.getloadavg()[0], 2), "size": self.size}
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if "about" in record:
            return
        shown = {name: _short(value) for name, value in record.items() if name not in HIDDEN}
        print(json.dumps(shown), file=sys.stderr, flush=True)


class Workload(Protocol):
    """A module of workloads/."""

    #: Its name on the command line, and its heading in the report.
    NAME: str
    TITLE: str
    #: How many of them it needs for a median, unless somebody says otherwise.
    ROUNDS: int

    def takes(self, peer: Peer) -> bool:
        """Tell whether a peer takes part."""

    def run(self, bench: Bench, peer: Peer) -> AsyncIterator[Figures]:
        """Measure a peer once; gives a record for each case."""


def _short(value: Any) -> Any:
    return round(value, 3 if abs(value) < 100 else None) if isinstance(value, float) else value


def _filler(length: int) -> str:
    return "".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(length // 64))
