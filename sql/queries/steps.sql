-- Gives the names and results of the steps that were kept of job $1, and one row without a name if there is none; no row: it is not held
-- under lease $2 any more.
select s.name, s.result
from howdah.jobs j left join howdah.steps s on s.job_id = j.id
where j.id = $1 and j.lease = $2
