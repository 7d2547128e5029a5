-- Running jobs, among the first of each lane, that hang: $1 and $2 as in queue_health. `running` is in seconds, null if it never started.
select f.id, f.kind, f.leased_by, w.name as worker, w.id is null or w.beat_at < clock_timestamp() - w.ttl as dead,
  extract(epoch from clock_timestamp() - f.started_at)::float8 as running,
  extract(epoch from coalesce(f.timeout, k.timeout, interval '300 s'))::float8 as timeout
from howdah.fronts() f left join howdah.workers w on w.id = f.leased_by left join howdah.kinds k on k.name = f.kind
where f.lease is not null and (w.id is null or w.beat_at < clock_timestamp() - w.ttl - $1::float8 * interval '1 second'
  or f.started_at < clock_timestamp() - coalesce(f.timeout, k.timeout, interval '300 s') - $2::float8 * interval '1 second')
order by f.claimed_at limit 20
