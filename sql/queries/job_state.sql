-- The state of job $1, its result and its last error.
select id, state, result, error from howdah.job_status where id = $1
