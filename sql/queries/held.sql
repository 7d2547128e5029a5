-- The jobs that worker $1 holds, as the database sees it: id and lease. Reads the whole table: there is no index on leased_by, on purpose.
select j.id, j.lease from howdah.jobs j where j.leased_by = $1
