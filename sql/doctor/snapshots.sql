-- Who keeps vacuum from clearing this database, oldest first: what it is, how many transactions old its snapshot is, for how
-- many seconds it has been held as far as this login may see, what it does, and the statement that frees it.
select h.holder, h.name, age(h.xmin) as age, h.held, h.doing, h.remedy
from (
  select case a.backend_type when 'walsender' then 'standby' else 'backend' end as holder,
    format('pid %s, %s', a.pid, coalesce(a.usename, a.backend_type)) as name, a.backend_xmin as xmin,
    extract(epoch from clock_timestamp() - a.xact_start)::float8 as held,
    concat_ws(', ', nullif(a.application_name, ''), a.state, left(regexp_replace(a.query, '\s+', ' ', 'g'), 80)) as doing,
    format('select pg_terminate_backend(%s)', a.pid) as remedy
  from pg_stat_activity a where a.backend_xmin is not null and a.pid <> pg_backend_pid() and (a.datname = current_database() or a.datname is null)
  union all
  select 'prepared transaction', format('%s of %s', p.gid, p.owner), p.transaction, extract(epoch from clock_timestamp() - p.prepared)::float8, 'prepared, neither committed nor undone',
    format('rollback prepared %L', p.gid)
  from pg_prepared_xacts p where p.database = current_database()
  union all
  select 'replication slot', s.slot_name, x.xmin, null, case when s.active then 'in use' else 'nobody reads it' end,
    format('select pg_drop_replication_slot(%L)', s.slot_name)
  from pg_replication_slots s cross join lateral (
    select o.xmin from (values (s.xmin), (s.catalog_xmin)) o(xmin) where o.xmin is not null order by age(o.xmin) desc limit 1) x) h
order by age(h.xmin) desc, h.held desc nulls last
limit 20
