"""pg-boss: Node, polling in batches, bursts while batches come back full, and LISTEN for single jobs."""

from peers.peer import Peer

PEER = Peer(
    name="pg-boss",
    requires=("pg-boss@12.35.0", "pg@8.23.1"),
    node=True,
    best={"workers": 4, "batch": 1000, "poll": 0.5},
    bounded={"workers": 10, "batch": 10, "poll": 0.5},
    latency={"poll": 30},
    fill="insert into pgboss.job (id, name, data, retry_limit, retry_delay) select gen_random_uuid(), 'job', {payload}, 2, 1"
    " from generate_series(1, {count}) n",
    finished="select not exists (select from pgboss.job where state < 'completed')",
    main=True,
    note="four workers with batches of 1,000; a batch is one call of the handler; woken by NOTIFY, and polling in seconds",
)
