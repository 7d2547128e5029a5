"""The tables of docs/benchmarks.md, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peers.targets import targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from peers.results import Results


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table; all columns but the first are numbers."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def targets_table(results: Results) -> str:
    """Make the table of targets."""
    rows = []
    for target in targets(results):
        sign = "≤" if target.most else "≥"
        rows.append(
            (
                target.what,
                f"{sign} {_figure(target.bound)} {target.unit}".strip(),
                f"{_figure(target.found)} {target.unit}".strip(),
                "met" if target.met else "**missed**",
            )
        )
    return table(("what", "target", "measured", ""), rows)


def rates_table(results: Results, workload: str) -> str:
    """Make a table of durable jobs per second: a row a peer, a column a case, the median and the rounds' range."""
    cases = results.cases(workload)
    peers = results.peers(workload)
    first = cases[-1] if cases else ""
    peers.sort(
        key=lambda peer: (
            -(
                results.median(workload, first, peer, "durable")
                or results.median(workload, cases[0], peer, "durable")
                or 0
            )
        )
    )
    rows = [(peer, *(_range(results, workload, case, peer) for case in cases)) for peer in peers]
    return table(("jobs/s, durable", *cases), rows)


def _range(results: Results, workload: str, case: str, peer: str) -> str:
    values = sorted(results.values(workload, case, peer, "durable"))
    if not values:
        return "-"
    middle = results.median(workload, case, peer, "durable") or 0.0
    mark = "*" if any("unfinished" in record for record in results.records(workload, case, peer)) else ""
    spread = f" ({values[0]:,.0f}-{values[-1]:,.0f})" if len(values) > 1 else ""
    return f"{middle:,.0f}{mark}{spread}"


def figures_table(results: Results, workload: str, figures: dict[str, str], case: str | None = None) -> str:
    """Make a table of figures: a row a peer, or a row a case where there is one peer."""
    cases = [case] if case is not None else results.cases(workload)
    peers = results.peers(workload, case)
    rows = []
    for one in cases:
        for peer in peers:
            found = [results.median(workload, one, peer, figure) for figure in figures]
            if any(value is not None for value in found):
                name = peer if len(cases) == 1 else one if len(peers) == 1 else f"{peer}, {one}"
                rows.append((name, *("-" if value is None else _figure(value) for value in found)))
    return table(("", *figures.values()), rows)


def tenths_table(results: Results, workload: str, figure: str) -> str:
    """Make a table of the tenths of a run: a row a peer and case."""
    rows = []
    for case in results.cases(workload):
        for peer in results.peers(workload, case):
            records = [record for record in results.records(workload, case, peer) if figure in record]
            if records:
                tenths = [sorted(record[figure][n] for record in records)[len(records) // 2] for n in range(10)]
                rows.append((f"{peer}, {case}", *(_figure(value) for value in tenths)))
    return table(("", *(f"{n}." for n in range(1, 11))), rows)


def peers_table(results: Results) -> str:
    """Make the table of who took part, in which version and with which settings."""
    rows = [
        (
            name,
            facts["version"],
            facts["language"],
            _settings(facts["best"]),
            _settings(facts["bounded"]),
            facts["note"],
        )
        for name, facts in results.about.get("peers", {}).items()
    ]
    heads = ("peer", "version", "language", "at its best", "bounded", "note")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _settings(settings: dict[str, object] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (settings or {}).items()) or "-"


def _figure(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"
