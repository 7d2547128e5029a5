"""docs/benchmarks.md: a frame of text, and in it the tables and pictures of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from peers import tables
from peers.install import ROOT
from peers.plots import draw
from peers.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable

FRAME = Path(__file__).with_name("frame.md")
PAGE = ROOT / "docs" / "benchmarks.md"
MISSING = "*Not measured in this run.*"
LATENCY = {"p50": "p50, ms", "p95": "p95, ms", "p99": "p99, ms", "max": "longest, ms"}


def write(*files: Path, page: Path = PAGE) -> None:
    """Make the page of the results in these files, with the results beside it."""
    results = Results(*files)
    folder = page.parent / page.stem
    pictures = draw(results, folder)
    text = FRAME.read_text(encoding="utf-8")
    text = re.sub(r"\{\{picture (\w+)\}\}\n", lambda found: _picture(pictures, found[1]), text)
    for name, make in _parts(results).items():
        text = text.replace("{{" + name + "}}", make())
    page.write_text(text, encoding="utf-8")
    kept = folder / "results.jsonl"
    lines = "".join(file.read_text(encoding="utf-8") for file in files)
    kept.write_text(re.sub(r' --results [^ "]+', "", lines), encoding="utf-8")  # somebody's folder is nobody's business
    print(f"{page}, {folder}")


def _picture(pictures: dict[str, str], name: str) -> str:
    return f"![{name}]({pictures[name]})\n" if name in pictures else ""


def _parts(results: Results) -> dict[str, Callable[[], str]]:
    def part(workload: str, make: Callable[[], str]) -> Callable[[], str]:
        return make if results.cases(workload) else lambda: MISSING

    return {
        "targets": lambda: tables.targets_table(results),
        "peers": lambda: tables.peers_table(results),
        "machine": lambda: _machine(results),
        "failures": lambda: _failures(results),
        "drain": part("drain", lambda: tables.rates_table(results, "drain")),
        "bounded": part("bounded", lambda: tables.rates_table(results, "bounded")),
        "realistic": part("realistic", lambda: tables.rates_table(results, "realistic")),
        "latency": part("latency", lambda: tables.figures_table(results, "latency", LATENCY, "idle")),
        "load": part(
            "load",
            lambda: tables.figures_table(
                results, "load", {"rate": "jobs/s", "late": "sender behind, s", **LATENCY}, "half of the peak"
            ),
        ),
        "enqueue": part(
            "enqueue",
            lambda: tables.figures_table(
                results, "enqueue", {"per_second": "jobs/s", "bare": "compared to", "ratio": "ratio"}
            ),
        ),
        "depth": part(
            "depth",
            lambda: tables.figures_table(results, "depth", {"handled": "jobs/s", "alone": "alone", "ratio": "ratio"}),
        ),
        "snapshot": part("snapshot", lambda: tables.tenths_table(results, "snapshot", "tenths")),
        "claims": part("snapshot", lambda: tables.tenths_table(results, "snapshot", "claim_p99_ms")),
        "waits": part("snapshot", lambda: tables.tenths_table(results, "snapshot", "wait_p99_ms")),
        "costs": part("costs", lambda: _costs(results)),
        "scaling": part("scaling", lambda: tables.figures_table(results, "scaling", {"durable": "jobs/s together"})),
    }


def _costs(results: Results) -> str:
    drained = {
        "statements_per_job": "statements a job",
        "commits_per_job": "commits a job",
        "wal_per_job": "WAL a job, bytes",
        "cpu_us": "CPU a job, µs",
        "rss": "memory, MB",
    }
    idle = {
        "transactions_per_second": "idle: transactions/s",
        "statements_per_second": "idle: statements/s",
        "cpu_share": "idle: share of a core",
    }
    under_load = tables.figures_table(results, "costs", drained, "under load")
    return under_load + "\n\n" + tables.figures_table(results, "costs", idle, "idle")


def _machine(results: Results) -> str:
    about = results.about
    if not about:
        return MISSING
    settings = ", ".join(f"`{name} = {value}`" for name, value in about["settings"].items())
    return (
        f"{', then '.join(f'`{command}`' for command in results.commands)} on {about['date']}, commit {' and '.join(results.commits)}: "
        f"{about['cores']} cores ({about['processor']}), {about['memory_gb']} GB, {about['kernel']}, "
        f"{about['fsyncs_per_second']:,} small writes a second reach the disk; load before: {about['load_before']}. "
        f"PostgreSQL {about['postgres']} with {settings}; data on disk; everything on the one machine, over TCP on loopback."
    )


def _failures(results: Results) -> str:
    lines = [f"- {record['workload']}, {record['peer']}: {record['error'][:200]}" for record in results.failures()]
    return "\n".join(["What failed in this run:", "", *lines]) if lines else ""


def results_in(folder: Path) -> Path:
    """Give the newest file of results in a folder."""
    found = sorted(folder.glob("results-*.jsonl"))
    if not found:
        raise FileNotFoundError(f"no results in {folder}: run ./dev peers first")
    return found[-1]
