-- The newest $10 of `found`, the jobs that find_jobs finds, newest first, each with what its kind declares secret and its worker's
-- name. The limit stands beneath the joins, so that the plan can walk both halves of the view by id.
select found.*, k.secret, w.name as worker_name, clock_timestamp() as asked_at
from (select * from found order by id desc limit $10) found
left join howdah.kinds k on k.name = found.kind
left join howdah.workers w on w.id = found.worker
order by found.id desc
