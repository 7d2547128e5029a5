"""One workload a file, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from peers.workloads import drain

if TYPE_CHECKING:
    from peers.bench import Workload

WORKLOADS: dict[str, Workload] = {module.NAME: cast("Workload", module) for module in (drain,)}
