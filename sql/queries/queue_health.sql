-- Jobs that hang: leased by a worker whose beat is older than its ttl by more than $1 seconds, or running past their timeout by more than $2
-- seconds; and how many are ready. Reads the whole table.
select count(*) filter (where j.lease is not null and (w.id is null or w.beat_at < clock_timestamp() - w.ttl - $1::float8 * interval '1 second'
         or j.started_at < clock_timestamp() - coalesce(j.timeout, k.timeout, interval '300 s') - $2::float8 * interval '1 second')) as stuck,
       count(*) filter (where j.state = 'ready') as pending
from howdah.jobs j left join howdah.workers w on w.id = j.leased_by left join howdah.kinds k on k.name = j.kind
