"""One workload a file, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from peers.workloads import bounded, costs, depth, drain, enqueue, latency, load, realistic, scaling, snapshot

if TYPE_CHECKING:
    from peers.bench import Workload

WORKLOADS: dict[str, Workload] = {
    module.NAME: cast("Workload", module)
    for module in (drain, bounded, latency, load, costs, enqueue, realistic, snapshot, scaling, depth)
}
