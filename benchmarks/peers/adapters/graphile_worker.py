"""graphile-worker, the fastest of the peers: Node, with its local queue and batched completions."""

from peers.peer import Peer

PEER = Peer(
    name="graphile-worker",
    requires=("graphile-worker@0.18.0", "pg@8.23.1"),
    node=True,
    best={"jobs": 10, "queue": 2000},
    bounded={"jobs": 100, "queue": 101},
    fill="insert into graphile_worker._private_jobs (task_id, payload) select task.id, ({payload})::json"
    " from graphile_worker._private_tasks task, generate_series(1, {count}) n where task.identifier = 'job'",
    finished="select not exists (select from graphile_worker._private_jobs)",
    main=True,
    note="a local queue of 2,000, completions batched; no job is kept after its end",
)
