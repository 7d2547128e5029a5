-- Writes the progress $3 of the jobs with ids $1 and leases $2, and gives the ids that it wrote. A row that somebody holds this
-- moment is passed over: the next round writes it.
with told as materialized (
  select * from unnest($1::bigint[], $2::bigint[], $3::jsonb[]) as t(id, lease, progress) order by t.id),
held as materialized (
  select locked.at, t.progress from told t cross join lateral (
    select j.ctid as at from howdah.jobs j where j.id = t.id and j.lease = t.lease for update skip locked) locked)
update howdah.jobs j
set progress = held.progress, progressed_at = greatest(j.claimed_at, clock_timestamp())
from held where j.ctid = held.at
returning j.id
