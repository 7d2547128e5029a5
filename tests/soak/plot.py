"""The picture: six curves over the minutes of the run, with the faults behind them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from soak.verdict import lives

if TYPE_CHECKING:
    from pathlib import Path

    from soak.faults import Fault
    from soak.samples import Sample

_MB = 1 << 20
_INK, _FAINT = "#1d3557", "#9aa5b1"
_WORKERS = ("#b3261e", "#2f7d4f", "#c77700", "#5b3fa0")
_OF_FAULTS = {
    "kill -9": "#b3261e",
    "server crashed": "#1d3557",
    "SIGSTOP": "#c77700",
    "SIGTERM": "#2f7d4f",
    "a snapshot held": "#8a8f98",
}


def draw(samples: list[Sample], faults: list[Fault], *, rate: float, title: str, target: Path) -> None:
    """Write the picture as PNG."""
    plt.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    )
    figure, grid = plt.subplots(3, 2, figsize=(13, 9), sharex=True, dpi=110)
    panels: list[Any] = list(grid.flat)
    for axes in panels:
        _faults(axes, faults)
    asked = [s for s in samples if s.finished is not None]
    minutes = [s.at / 60 for s in asked]

    _throughput(panels[0], asked, rate)
    panels[1].set_title("Oldest ready job, seconds")
    panels[1].plot(minutes, [max(s.oldest or 0.0, 0.01) for s in asked], color=_INK, lw=1)
    panels[1].set_yscale("log")
    _memory(panels[2], samples)
    panels[3].set_title("Connections of all workers")
    panels[3].plot(minutes, [s.connections for s in asked], color=_INK, lw=1)
    panels[3].set_ylim(bottom=0)
    panels[4].set_title("howdah.jobs: size with indexes, MB (left); live rows (right)")
    panels[4].plot(minutes, [((s.jobs_bytes or 0) + (s.index_bytes or 0)) / _MB for s in asked], color=_INK, lw=1.4)
    panels[4].set_ylim(bottom=0)
    right = panels[4].twinx()
    right.plot(minutes, [s.live for s in asked], color=_FAINT, lw=0.8)
    right.set_ylim(bottom=0)
    right.spines["right"].set_visible(True)
    _cpu(panels[5], asked)
    for axes in panels[4:]:
        axes.set_xlabel("minutes")
    for axes in panels:
        axes.set_xlim(0, samples[-1].at / 60)
    named = [
        plt.Line2D([], [], color=color, lw=2, label=f"{name} …" if name == "a snapshot held" else name)
        for name, color in _OF_FAULTS.items()
    ]
    named.append(plt.Line2D([], [], color="#d5d9de", lw=2, label="wires cut, backends terminated"))
    figure.legend(handles=named, loc="lower center", ncols=6, frameon=False, title="faults (vertical lines)")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.tight_layout(rect=(0, 0.06, 1, 0.985))
    figure.savefig(target)
    plt.close(figure)


def _faults(axes: Any, faults: list[Fault]) -> None:
    for fault in faults:
        color = next((c for name, c in _OF_FAULTS.items() if fault.name.startswith(name)), "#b9c0c8")
        if fault.name.startswith("a snapshot held"):
            axes.axvspan(fault.at / 60, fault.until / 60, color=color, alpha=0.13, lw=0)
        else:
            axes.axvline(fault.at / 60, color=color, alpha=0.35, lw=0.8)


def _throughput(axes: Any, asked: list[Sample], rate: float) -> None:
    axes.set_title("Jobs that ended, per second (dotted: enqueued)")
    points = [
        ((a.at + b.at) / 120, ((b.finished or 0) - (a.finished or 0)) / (b.at - a.at)) for a, b in pairwise(asked)
    ]
    axes.plot(*zip(*points, strict=True), color=_INK, lw=1)
    axes.axhline(rate, color=_INK, lw=1, ls=":")
    axes.set_ylim(bottom=0)


def _memory(axes: Any, samples: list[Sample]) -> None:
    axes.set_title("Memory of each worker, MB: RSS (solid), PSS (faint)")
    named = set()
    for (worker, _), points in sorted(lives(samples).items()):
        color = _WORKERS[(worker - 1) % len(_WORKERS)]
        label = (
            None
            if worker in named
            else f"worker {worker}" + (", never killed" if worker == 1 else ", killed and restarted")
        )
        named.add(worker)
        times = [at / 60 for at, _, _ in points]
        axes.plot(times, [rss / _MB for _, rss, _ in points], color=color, lw=2 if worker == 1 else 1, label=label)
        axes.plot(times, [pss / _MB for _, _, pss in points], color=color, lw=0.8, alpha=0.4)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right", fontsize=8)


def _cpu(axes: Any, asked: list[Sample]) -> None:
    axes.set_title("CPU per job, µs: workers (solid), server (dashed); means of a minute")
    workers, server = costs(asked)
    for points, style in ((workers, "-"), (server, "--")):
        if points:
            axes.plot(*zip(*points, strict=True), color=_INK, lw=1, ls=style)
    axes.set_ylim(bottom=0)


def costs(asked: list[Sample], window: float = 60.0) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Give CPU µs a job over the minutes, of the workers together and of the server; a process that is new begins at nothing."""
    workers, server = [], []
    spent = served = jobs = 0.0
    since = asked[0].at if asked else 0.0
    for a, b in pairwise(asked):
        for number, process in b.workers.items():
            before = a.workers.get(number)
            spent += process.cpu - (before.cpu if before and before.life == process.life else 0.0)
        served += b.server_cpu - a.server_cpu if b.server_cpu >= a.server_cpu else b.server_cpu
        jobs += (b.finished or 0) - (a.finished or 0)
        if b.at - since >= window and jobs > 0:
            middle = (since + b.at) / 120
            workers.append((middle, spent / jobs * 1e6))
            server.append((middle, served / jobs * 1e6))
            spent = served = jobs = 0.0
            since = b.at
    return workers, server
