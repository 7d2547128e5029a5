-- The steps of job $1 that are kept, with what each gave.
select name, result, created_at from howdah.steps where job_id = $1 order by created_at, name
