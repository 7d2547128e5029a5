-- Everything that is known of job $1, with what its kind declares secret, its worker's name, what it waits for, and the jobs that were made
-- of it by retry.
select j.*, k.secret, w.name as worker_name, clock_timestamp() as asked_at,
  array(select d.depends_on from howdah.dependencies d where d.job_id = j.id order by d.depends_on) as waits_for,
  array(select r.id from howdah.job_status r where r.retried_from = j.id and r.id > j.id order by r.id) as retries
from howdah.job_status j
left join howdah.kinds k on k.name = j.kind
left join howdah.workers w on w.id = j.worker
where j.id = $1
