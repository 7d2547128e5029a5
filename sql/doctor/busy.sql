-- Who runs: jobs that have been claimed, by queue and kind, among the first of each lane.
select f.queue, f.kind, count(*) as jobs, extract(epoch from clock_timestamp() - min(f.claimed_at))::float8 as longest
from howdah.fronts() f where f.lease is not null group by f.queue, f.kind order by count(*) desc, f.queue, f.kind
