-- The history's days that have a partition, as days from today.
select to_date(right(c.relname, 8), 'YYYYMMDD') - (clock_timestamp() at time zone 'UTC')::date as day
from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'howdah.job_history'::regclass
order by 1
