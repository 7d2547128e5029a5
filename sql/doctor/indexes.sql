-- The indexes of the engine's tables, and of jobs the columns that each names.
select t.relname::text as "table", c.relname::text as name, i.indisvalid and i.indisready as valid,
  array(select a.attname::text from pg_attribute a where a.attrelid = t.oid and a.attnum = any (i.indkey)) as columns
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_class t on t.oid = i.indrelid
where t.relnamespace = 'howdah'::regnamespace and not t.relispartition
order by 1, 2
