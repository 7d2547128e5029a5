-- Leaves to the rescue the jobs with ids $2 and leases $3, which worker $1 holds and knows nothing of: they become those of a worker that has left.
-- A row that somebody locks this moment is passed over. Touches no indexed column.
with told as materialized (
  select * from unnest($2::bigint[], $3::bigint[]) as t(id, lease) order by t.id),
lost as materialized (
  select one.at from told t cross join lateral (
    select j.ctid as at from howdah.jobs j where j.id = t.id and j.lease = t.lease and j.leased_by = $1 for update skip locked) one),
ghost as (
  insert into howdah.workers (name, version, ttl, queues, kinds, started_at, beat_at)
  select w.name, w.version, interval '0', '{}', '{}', 'epoch', 'epoch' from howdah.workers w where w.id = $1 and exists (select from lost)
  returning id)
update howdah.jobs j set leased_by = ghost.id from lost, ghost where j.ctid = lost.at
returning j.id
