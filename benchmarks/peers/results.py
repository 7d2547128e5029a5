"""Results as they were written down, asked by workload, case and peer."""

from __future__ import annotations

import json
import re
import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Record = dict[str, Any]


class Results:
    """The records of one or several files; the first one tells of the machine, and each of the peers that took part."""

    def __init__(self, *files: Path) -> None:
        records: list[Record] = []
        for file in files:
            records += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        abouts = [record["about"] for record in records if "about" in record]
        self.about: Record = {}
        for about in abouts:
            self.about = about | self.about | {"peers": self.about.get("peers", {}) | about.get("peers", {})}
        #: Every run, as it was started; where its results went is nobody's business.
        self.commands: list[str] = [re.sub(r" --results \S+", "", about["command"]) for about in abouts]
        self.commits: list[str] = list(dict.fromkeys(about["commit"] or "unknown" for about in abouts))
        self._records = [record for record in records if "about" not in record]

    def cases(self, workload: str) -> list[str]:
        """Give the cases of a workload that some peer has a result for, in order."""
        return list(dict.fromkeys(record["case"] for record in self._of(workload) if "case" in record))

    def peers(self, workload: str, case: str | None = None) -> list[str]:
        """Give the peers with results, in order."""
        found = (record for record in self._of(workload) if "case" in record and case in {None, record["case"]})
        return list(dict.fromkeys(record["peer"] for record in found))

    def records(self, workload: str, case: str, peer: str) -> list[Record]:
        """Give a peer's records of a case, one a round."""
        return [record for record in self._of(workload) if record.get("case") == case and record["peer"] == peer]

    def values(self, workload: str, case: str, peer: str, figure: str) -> list[float]:
        """Give a figure of every round."""
        return [record[figure] for record in self.records(workload, case, peer) if figure in record]

    def median(self, workload: str, case: str, peer: str, figure: str) -> float | None:
        """Give a figure's median over the rounds; None where there is none."""
        values = self.values(workload, case, peer, figure)
        return statistics.median(values) if values else None

    def failures(self) -> list[Record]:
        """Give what went wrong."""
        return [record for record in self._records if "error" in record]

    def _of(self, workload: str) -> list[Record]:
        return [record for record in self._records if record["workload"] == workload]
