"""The page: docs/soak.md, made of what was measured, with the command, the machine and the releases."""

from __future__ import annotations

import os
import platform
from collections import Counter, defaultdict
from statistics import median
from typing import TYPE_CHECKING

from soak.load import SHARES
from soak.plot import costs
from soak.workers import TTL

if TYPE_CHECKING:
    from pathlib import Path

    from soak.faults import Fault
    from soak.samples import Sample
    from soak.verdict import Finding

_MB = 1 << 20


def write(
    target: Path,
    *,
    command: str,
    peak: float | None,
    rate: float,
    minutes: float,
    postgres: str,
    findings: list[Finding],
    faults: list[Fault],
    samples: list[Sample],
    ends: dict[str, int],
    events: dict[str, Counter[str]],
    load: tuple[float, float],
    note: str,
) -> None:
    """Write the page."""
    asked = [s for s in samples if s.finished is not None]
    workers, server = costs(asked)
    mix = ", ".join(f"{share} % {kind.removeprefix('soak_')}" for kind, share in SHARES.items())
    measured = (
        f"That is half of the peak, which was measured at the start: 100,000 jobs of the mix, enqueued as fast as it goes while the workers work, ended at {peak:,.0f} jobs/s."
        if peak
        else ""
    )
    last = asked[-1]
    hour = "Half an hour" if minutes == 30 else f"{minutes:g} minutes"
    text = [
        f"# {hour} of load and faults",
        "",
        f"`{command}`, which made this page and the picture: three workers, a steady stream of {rate:,.0f} jobs/s for {minutes:g} minutes, and every 5 to 15",
        f"seconds a fault.{measured and ' '}{measured} Of the jobs {mix} (writes in one commit with its completion; fails up to twice;",
        "has a key and comes seconds later; has a limit of 20; holds a slot for a second), the rest does nothing. Worker 1 is frozen and cut off like the others but",
        f"never killed, so that its memory can be watched; a supervisor starts the others again. `HOWDAH_LEASE_TTL` is {TTL} s.",
        "",
        "![Throughput, age of the oldest ready job, memory, connections, table size and CPU per job over the minutes](soak.png)",
        "",
        (
            f"{sum(ends.values()):,} jobs were enqueued and ended: {', '.join(f'{count:,} {state}' for state, count in sorted(ends.items()))}."
            f" {len(faults)} faults. A job cost {median(y for _, y in workers) if workers else 0:.0f} µs of the workers' CPU and"
            f" {median(y for _, y in server) if server else 0:.0f} µs of the server's (medians of minutes; what a killed worker used in its last seconds is not in it)."
            f" History grew to {(last.history_bytes or 0) / _MB:,.0f} MB, which is its office."
        ),
        "",
        "| bound | found | |",
        "|---|---|---|",
        *(
            f"| {f.what} | {f.found} | {'holds' if f.holds else 'not judged' if f.holds is None else '**broken**'} |"
            for f in findings
        ),
        "",
        "| fault | times | work flows again after (middle, most) | the victim's jobs were others' after |",
        "|---|--:|--:|--:|",
        *_faults(faults),
        "",
        "Seconds count from the fault's end; of a frozen worker from its beginning, since nobody waits for its end. Work flows when a new job is through within a second,",
        "and other faults come meanwhile. The last column counts from the kill to the moment when none of the jobs that it held is its own any more.",
        "",
        f"What the workers logged: {_events(events)}.",
        "",
        (
            f"The machine: {_machine()}, PostgreSQL {postgres} beside the workers and durable (`fsync`, `synchronous_commit` on), Python {platform.python_version()}."
            f" Its load average was {load[0]:.1f} before and {load[1]:.1f} after: whatever else ran on it at the time is in these figures, which tell of flatness, not of speed."
            f"{note and ' '}{note}"
        ),
    ]
    target.write_text("\n".join(text) + "\n", encoding="utf-8")


def _faults(faults: list[Fault]) -> list[str]:
    by_name = defaultdict(list)
    for fault in faults:
        by_name[fault.name].append(fault)
    lines = []
    for name, some in sorted(by_name.items()):
        flows = [f.flowing for f in some if f.flowing is not None]
        backs = [f.back for f in some if f.back is not None]
        flowing = f"{median(flows):.1f} s, {max(flows):.1f} s" if flows else ""
        back = f"{median(backs):.1f} s, {max(backs):.1f} s" if backs else ""
        lines.append(f"| {name} | {len(some)} | {flowing} | {back} |")
    return lines


def _events(events: dict[str, Counter[str]]) -> str:
    said = [
        f"{count:,} times {event!r} ({level})"
        for level in ("error", "warning", "")
        for event, count in events[level].most_common(8)
    ]
    return ", ".join(said) or "nothing at WARNING or above"


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - /proc is Linux's, as the soak is
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({models[0] if models else cpu}), {memory:.0f} GiB, Linux {platform.release()}"
