"""The pictures of docs/benchmarks.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from peers.results import Results

OURS, THEIRS, RULER = "#c2410c", "#64748b", "#cbd5e1"


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Draw what there are results for; gives file names by picture."""
    mpl.rcParams.update(
        {
            "svg.hashsalt": "howdah",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    for name, figure in _figures(results):
        figure.tight_layout()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        drawn[name] = f"{folder.name}/{name}.svg"
    return drawn


def _figures(results: Results) -> Iterator[tuple[str, Any]]:
    if cases := results.cases("drain"):
        yield "drain", _bars(results, "drain", cases[0], "durable", label="jobs/s, durable")
    if cases := results.cases("bounded"):
        yield (
            "bounded",
            _bars(results, "bounded", cases[-1], "durable", label="jobs/s, durable, at most 100 handlers at once"),
        )
    if results.cases("latency"):
        yield (
            "latency",
            _bars(results, "latency", "idle", "p50", label="ms from enqueue to start, p50 (line: p99)", until="p99"),
        )
    if cases := results.cases("snapshot"):
        yield "snapshot", _tenths(results, cases[0])
    if results.cases("scaling"):
        yield "scaling", _scaling(results)


def _bars(results: Results, workload: str, case: str, figure: str, *, label: str, until: str | None = None) -> Any:
    peers = [peer for peer in results.peers(workload, case) if results.median(workload, case, peer, figure)]
    peers.sort(key=lambda peer: results.median(workload, case, peer, figure) or 0, reverse=until is not None)
    values = [results.median(workload, case, peer, figure) or 0 for peer in peers]
    picture, axes = plt.subplots(figsize=(7, 0.32 * len(peers) + 0.8))
    bars = axes.barh(peers, values, color=[_colour(results, peer) for peer in peers])
    axes.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values], padding=3)
    if until is not None:
        longest = [results.median(workload, case, peer, until) or 0 for peer in peers]
        axes.scatter(longest, peers, marker="|", color="#334155", s=120)
        axes.set_xscale("log")
        axes.set_xlim(left=min(1, min(values) / 2))
    axes.set_xlabel(f"{label} · {case}" if until is None else label)
    return picture


def _tenths(results: Results, case: str) -> Any:
    picture, axes = plt.subplots(figsize=(7, 3))
    for peer in results.peers("snapshot", case):
        tenths = results.records("snapshot", case, peer)[0]["tenths"]
        axes.plot(
            range(1, 11),
            tenths,
            label=peer,
            color=OURS if peer == "howdah" else None,
            linewidth=2 if peer == "howdah" else 1,
        )
    axes.set_xlabel(f"tenth of {case}, a snapshot held open")
    axes.set_ylabel("jobs/s")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return picture


def _scaling(results: Results) -> Any:
    cases = results.cases("scaling")
    picture, axes = plt.subplots(figsize=(5, 2.5))
    axes.plot(cases, [results.median("scaling", case, "howdah", "durable") or 0 for case in cases], "o-", color=OURS)
    axes.set_xlabel("daemons")
    axes.set_ylabel("jobs/s together")
    axes.set_ylim(bottom=0)
    return picture


def _colour(results: Results, peer: str) -> str:
    if peer == "howdah":
        return OURS
    return RULER if results.about.get("peers", {}).get(peer, {}).get("ruler") else THEIRS
