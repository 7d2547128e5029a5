-- Drops the history's days that are older than $1 days; names them.
select howdah.drop_partitions($1) as name
