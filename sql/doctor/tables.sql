-- The hot tables: rows living and dead as the statistics have them, size in bytes, the seconds since a vacuum of either sort,
-- whether autovacuum may touch it, and its fillfactor.
select c.relname::text as name, s.n_live_tup as live, s.n_dead_tup as dead, pg_total_relation_size(c.oid) as bytes,
  extract(epoch from clock_timestamp() - greatest(s.last_autovacuum, s.last_vacuum))::float8 as vacuumed,
  not coalesce('autovacuum_enabled=false' = any (c.reloptions) or 'autovacuum_enabled=off' = any (c.reloptions), false) as autovacuum,
  (select split_part(o, '=', 2)::int from unnest(c.reloptions) o where o like 'fillfactor=%') as fillfactor
from pg_class c left join pg_stat_user_tables s on s.relid = c.oid
where c.oid in ('howdah.jobs'::regclass, 'howdah.events'::regclass, 'howdah.workers'::regclass, 'howdah.signals'::regclass)
order by c.relname
