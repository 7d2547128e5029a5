-- How many jobs have come and gone since the statistics began, by what the server counts for itself: no table is read.
select coalesce(s.n_tup_ins, 0) as come, coalesce(s.n_tup_del, 0) as gone, clock_timestamp() as at
from pg_stat_user_tables s where s.relid = 'howdah.jobs'::regclass
