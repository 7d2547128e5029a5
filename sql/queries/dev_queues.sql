-- Live jobs by queue, how many in each state, and the kinds in them that no worker runs there, for the view of `howdah dev`. Reads
-- the whole table.
with counted as materialized (
  select j.queue, j.kind, count(*) filter (where j.state = 'ready') as ready, count(*) filter (where j.state = 'running') as running,
         count(*) filter (where j.state in ('scheduled', 'waiting')) as later, count(*) filter (where j.state = 'retrying') as retrying
  from howdah.jobs j group by 1, 2)
select c.queue, sum(c.ready)::bigint as ready, sum(c.running)::bigint as running, sum(c.later)::bigint as later, sum(c.retrying)::bigint as retrying,
       array_agg(c.kind order by c.kind) filter (where not exists (
         select from howdah.workers w where c.queue = any (w.queues) and c.kind = any (w.kinds))) as unserved
from counted c group by 1 order by 1
