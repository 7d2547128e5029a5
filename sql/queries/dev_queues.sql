-- Live jobs by queue: how many in each state, and whether a worker serves the queue, for the view of `howdah dev`. Reads the whole table.
select j.queue, count(*) filter (where j.state = 'ready') as ready, count(*) filter (where j.state = 'running') as running,
       count(*) filter (where j.state in ('scheduled', 'waiting')) as later, count(*) filter (where j.state = 'retrying') as retrying,
       exists (select from howdah.workers w where j.queue = any (w.queues)) as served
from howdah.jobs j group by j.queue order by j.queue
