-- Writes that the jobs with ids $1 and leases $2 started $3 seconds ago, and gives the ids that are still held. Touches no
-- indexed column. A row that somebody holds this moment is passed over: the next round writes it.
with told as materialized (
  select * from unnest($1::bigint[], $2::bigint[], $3::float8[]) as t(id, lease, ago) order by t.id),
held as materialized (
  select locked.at, t.ago from told t cross join lateral (
    select j.ctid as at from howdah.jobs j where j.id = t.id and j.lease = t.lease for update skip locked) locked)
update howdah.jobs j
set started_at = coalesce(j.started_at, greatest(j.claimed_at, clock_timestamp() - held.ago * interval '1 second'))
from held where j.ctid = held.at
returning j.id
