-- Ready jobs, among the first of each lane, that no living worker of their queue takes: by queue and kind, and whether some worker
-- serves the queue at all.
select f.queue, f.kind, count(*) as jobs, extract(epoch from clock_timestamp() - min(f.ready_at))::float8 as oldest,
  exists (select from howdah.workers w where w.beat_at >= clock_timestamp() - w.ttl and f.queue = any (w.queues)) as served
from howdah.fronts() f
where f.lease is null and not exists (select from howdah.workers w where w.beat_at >= clock_timestamp() - w.ttl
  and f.queue = any (w.queues) and f.kind = any (w.kinds))
group by f.queue, f.kind order by count(*) desc, f.queue, f.kind limit 20
