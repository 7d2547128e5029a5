-- What is to be known of the whole database besides its jobs, as samples: a figure's name, its labels, its value. $1 and $2 as in
-- queue_health. Reads no table of jobs but the first of each lane. Who holds the oldest snapshot is told by the sort of
-- holder; `held` is for how long, as far as this login may see, and `who` tells snapshots apart.
with worker as materialized (
  select w.*, w.beat_at < clock_timestamp() - w.ttl as dead from howdah.workers w),
front as materialized (select f.* from howdah.fronts() f),
holder as (
  select case a.backend_type when 'walsender' then 'standby' else 'backend' end as holder, a.backend_xmin as xmin,
    extract(epoch from clock_timestamp() - a.xact_start)::float8 as held, a.pid::text as who
  from pg_stat_activity a where a.backend_xmin is not null and a.pid <> pg_backend_pid()
    and (a.datname = current_database() or a.datname is null)
  union all
  select 'prepared', p.transaction, extract(epoch from clock_timestamp() - p.prepared)::float8, p.gid
  from pg_prepared_xacts p where p.database = current_database()
  union all
  select 'replication_slot', least_old.xmin, null, s.slot_name
  from pg_replication_slots s cross join lateral (
    select x.xmin from (values (s.xmin), (s.catalog_xmin)) x(xmin) where x.xmin is not null order by age(x.xmin) desc limit 1) least_old),
oldest as (
  select distinct on (h.holder) h.holder, age(h.xmin) as age, h.held, h.who || ' ' || h.xmin as who from holder h order by h.holder, age(h.xmin) desc),
partition as (
  select to_date(right(c.relname, 8), 'YYYYMMDD') as day, c.oid from pg_inherits i join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'howdah.job_history'::regclass),
relation as (
  select c.oid, c.relname::text as name from pg_class c
  where c.oid in ('howdah.jobs'::regclass, 'howdah.events'::regclass, 'howdah.workers'::regclass, 'howdah.signals'::regclass)
  union all select p.oid, 'job_history' from partition p),
size as (
  select r.name, sum(pg_total_relation_size(r.oid)) as bytes, sum(s.n_live_tup) as live, sum(s.n_dead_tup) as dead
  from relation r left join pg_stat_user_tables s on s.relid = r.oid group by r.name),
today as (select (clock_timestamp() at time zone 'UTC')::date as today)
select 'howdah_workers' as name, array[s.state] as labels, (select count(*) from worker w where
    case when w.dead then 'dead' when w.draining then 'draining' else 'living' end = s.state)::float8 as value, null::text as who
from unnest(array['living', 'draining', 'dead']) s(state)
union all
select 'howdah_queue_paused_seconds', array[q.name], extract(epoch from clock_timestamp() - q.paused_at)::float8, null
from howdah.queues q where q.paused_at is not null
union all
select * from (select 'howdah_limit_oldest_seconds', array[l.name], coalesce(l.oldest, 0), null::text from howdah.limit_lines(200) l
  order by l.oldest desc nulls last limit 100) held_back
union all
select 'howdah_schedule_overdue_seconds', '{}', coalesce(extract(epoch from max(s.overdue)), 0)::float8, null from howdah.schedule_status s
union all
select 'howdah_schedules', array[t.state], (select count(*) from howdah.schedule_status s where
    case when s.paused_at is not null then 'paused' when s.problem is not null then 'failing' else 'active' end = t.state)::float8, null
from unnest(array['active', 'paused', 'failing']) t(state)
union all
select 'howdah_stuck_jobs', '{}', count(*)::float8, null
from front f left join worker w on w.id = f.leased_by left join howdah.kinds k on k.name = f.kind
where f.lease is not null and (w.id is null or w.beat_at < clock_timestamp() - w.ttl - $1::float8 * interval '1 second'
  or f.started_at < clock_timestamp() - coalesce(f.timeout, k.timeout, interval '300 s') - $2::float8 * interval '1 second')
union all
select 'howdah_orphan_jobs', array[f.queue], count(*)::float8, null
from front f where f.lease is null and not exists (
  select from worker w where not w.dead and f.queue = any (w.queues) and f.kind = any (w.kinds)) group by f.queue
union all
select 'howdah_table_bytes', array[z.name], z.bytes::float8, null from size z
union all
select 'howdah_table_live_rows', array[z.name], z.live::float8, null from size z where z.live is not null
union all
select 'howdah_table_dead_rows', array[z.name], z.dead::float8, null from size z where z.dead is not null
union all
select 'howdah_xmin_age_transactions', array[o.holder], o.age::float8, o.who from oldest o
union all
select 'howdah_xmin_held_seconds', array[o.holder], o.held, o.who from oldest o
union all
select 'howdah_notify_queue_usage_ratio', '{}', pg_notification_queue_usage(), null
union all
select 'howdah_history_partitions_ahead', '{}', (select count(*) from (
    select p.day - t.today as ahead, row_number() over (order by p.day) - 1 as place from partition p where p.day >= t.today) days where ahead = place)::float8, null
from today t
union all
select 'howdah_history_oldest_seconds', '{}', extract(epoch from clock_timestamp() - (min(p.day)::timestamp at time zone 'UTC'))::float8, null
from partition p having count(*) > 0
