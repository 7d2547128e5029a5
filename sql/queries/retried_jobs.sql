-- Which of the jobs $1 have been retried already.
select distinct retried_from as id from howdah.job_status
where retried_from = any ($1::bigint[]) and id > (select min(old) from unnest($1::bigint[]) old)
