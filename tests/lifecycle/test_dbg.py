from support.eventually import aeventually
from support.facts import RECORD, is_empty, make_runs, runs
from support.jobs import enqueue, enqueue_many, claim, Line
import time, secrets
async def test_x(daemon, connection):
    await make_runs(connection)
    w = await daemon(RECORD, queues="default:2")
    await enqueue_many(connection, *({"kind": "record", "payload": {"seconds": 0.05}} for _ in range(40)))
    await aeventually(lambda: runs(connection, "job"))
    t=time.time()
    urgent = await enqueue(connection, "record", priority=10)
    print("D enqueue took", time.time()-t)
    for n in range(3):
      for past in (0, 40):
        tr = connection.transaction(); await tr.start()
        h = await claim(connection, 1, count=1, kinds=["record"], lines=[Line("default", r, past if r<10 else 3, r) for r in range(11)])
        print("D", past, [x.id for x in h], [tuple(r) for r in await connection.fetch("select id, priority, due_at, lease, suspect, state from howdah.jobs where id=$1", urgent)])
        await tr.rollback()
    await aeventually(lambda: is_empty(connection))
    assert 0
