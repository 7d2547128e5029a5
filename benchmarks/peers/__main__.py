"""`./dev peers`: install the peers, start the server, run the workloads in turns, and write down what was found."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from peers import report, tables
from peers.adapters import all_peers
from peers.bench import Bench
from peers.install import CACHE, InstallError, install
from peers.machine import about
from peers.peer import pick
from peers.redis import redis_running
from peers.results import Results
from peers.server import running
from peers.workloads import WORKLOADS

if TYPE_CHECKING:
    from peers.bench import Size, Workload
    from peers.install import Installed
    from peers.peer import Peer

#: Longer than this, in seconds, no peer takes for one workload; nothing new is begun after so many minutes.
PATIENCE = {"quick": 300, "standard": 1500, "full": 6 * 3600}
MINUTES = {"quick": 6, "standard": 45, "full": 24 * 60}
#: Who runs in the quick form, unless somebody says otherwise.
QUICK = ["howdah", "graphile-worker", "pgqueuer", "bare asyncpg"]


def main() -> None:
    """Parse, and run."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    parser = argparse.ArgumentParser(prog="./dev peers", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; all if none")
    parser.add_argument("--peers", default="", help=f"of {','.join(all_peers())}; all if none")
    parser.add_argument("--rounds", type=int, default=0, help="every peer once in each; 1 to 3, by the workload")
    parser.add_argument(
        "--quick", action="store_const", dest="size", const="quick", help="one small round of four, 6 minutes"
    )
    parser.add_argument("--full", action="store_const", dest="size", const="full", help="the long forms as well, hours")
    parser.add_argument("--minutes", type=float, default=0, help="begin nothing new after so many; 6 or 45")
    parser.add_argument("--mass", type=int, default=0, help="depth: so many rows instead of each of its masses")
    parser.add_argument(
        "--only", default="", help="depth, realistic and snapshot: the cases in whose names this is found"
    )
    parser.add_argument("--results", type=Path, help="the file of JSON lines to append to")
    parser.add_argument(
        "--report",
        nargs="*",
        type=Path,
        help="measure nothing: make docs/benchmarks.md of these files, or of the newest",
    )
    given = parser.parse_args()
    if given.report is not None:
        report.write(*(given.report or [report.results_in(CACHE)]))
        return
    size: Size = given.size or "standard"
    try:
        names = [name for name in given.peers.split(",") if name]
        peers = pick(all_peers(), names or (QUICK if size == "quick" else []))
        workloads = [WORKLOADS[name] for name in given.workloads or WORKLOADS]
    except (ValueError, KeyError) as error:
        parser.error(
            str(error) if isinstance(error, ValueError) else f"{error} is no workload; there are {', '.join(WORKLOADS)}"
        )
    results = given.results or CACHE / f"results-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    minutes = given.minutes or MINUTES[size]
    installed = _install(peers)
    with running() as server, redis_running(wanted=any(peer.redis for peer in peers)) as redis:
        peers = [peer for peer in peers if peer.name in installed and (redis or not peer.redis)]
        bench = Bench(
            server=server,
            redis=redis,
            installed=installed,
            size=size,
            results=results,
            mass=given.mass,
            only=given.only,
        )
        asyncio.run(_run(bench, workloads, peers, given.rounds, minutes * 60))
    print(tables.targets_table(Results(results)))
    print(f"\n{results}: ./dev peers --report makes docs/benchmarks.md of it")


def _install(peers: list[Peer]) -> dict[str, Installed]:
    """Install every peer; says which cannot be, and why."""
    installed: dict[str, Installed] = {}
    for peer in peers:
        try:
            installed[peer.name] = install(peer)
        except InstallError as error:
            print(f"{peer.name} is left out: {error}", file=sys.stderr, flush=True)
    return installed


async def _run(bench: Bench, workloads: list[Workload], peers: list[Peer], rounds: int, seconds: float) -> None:
    """Run each workload in rounds: in every round each peer once, so that a tired machine tires for all."""
    began = time.monotonic()
    left_out = 0
    bench.keep(**await about(bench, peers))
    for workload in workloads:
        for number in range(rounds or bench.of(quick=1, standard=workload.ROUNDS)):
            for peer in peers:
                if not workload.takes(peer) or (number and not peer.main):
                    continue
                if time.monotonic() - began > seconds:
                    left_out += 1
                    continue
                await _measure(bench, workload, peer, number)
        print(f"{workload.NAME}: after {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)
    if left_out:
        print(f"{left_out} measurements were left out: the time was up", file=sys.stderr)


async def _measure(bench: Bench, workload: Workload, peer: Peer, number: int) -> None:
    """Measure one peer once. What goes wrong with it is its result, and ends nothing else."""
    about = {"workload": workload.NAME, "peer": peer.name, "round": number}
    try:
        async with asyncio.timeout(PATIENCE[bench.size]):
            async for figures in workload.run(bench, peer):
                bench.keep(**about, **figures)
    except Exception as error:
        bench.keep(**about, error=f"{type(error).__name__}: {error}"[:600])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: what was measured is in the newest results, for ./dev peers --report")
