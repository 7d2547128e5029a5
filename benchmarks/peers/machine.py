"""What a reader of the figures must know of the machine, the server and the versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.install import CACHE, ROOT
from peers.server import SETTINGS

if TYPE_CHECKING:
    from peers.bench import Bench
    from peers.peer import Peer


async def about(bench: Bench, peers: list[Peer]) -> dict[str, Any]:
    """Give all of it as one record."""
    async with bench.server.connected() as connection:
        postgres = await connection.fetchval("select current_setting('server_version')")
    return {
        "about": {
            "date": time.strftime("%Y-%m-%d"),
            "commit": _commit(),
            "command": " ".join(["./dev peers", *sys.argv[1:]]),
            "size": bench.size,
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "kernel": f"{platform.system()} {platform.release()}",
            "load_before": round(os.getloadavg()[0], 2),
            "postgres": str(postgres).split()[0],
            "settings": SETTINGS,
            "fsyncs_per_second": round(_fsyncs()),
            "peers": {peer.name: _facts(bench, peer) for peer in peers},
        }
    }


def _facts(bench: Bench, peer: Peer) -> dict[str, Any]:
    versions = bench.installed[peer.name].versions
    language = f"Node {versions['node']}" if peer.node else f"Python {versions['python']}"
    package, _, version = peer.requires[0].partition("@" if peer.node else "==")
    version = version or versions.get(peer.name, "")
    if package == "-e":
        version = versions.get("howdah", "")
    return {
        "version": version,
        "language": language,
        "best": peer.best,
        "bounded": peer.bounded,
        "note": peer.note,
        "ruler": peer.ruler,
    }


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _fsyncs() -> float:
    """Give how many small writes a second reach the disk: what a commit waits for."""
    path = CACHE / f"fsync-{os.getpid()}"
    count, began = 100, time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(b"x" * 8192)
            os.fdatasync(file.fileno())
    path.unlink()
    return count / (time.perf_counter() - began)
