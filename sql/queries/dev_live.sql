-- What runs and what waits for another attempt, the longest running first, at most $1 jobs, for the view of `howdah dev`.
select j.id, j.queue, j.kind, j.state, j.attempt, j.max_attempts, j.progress::text as progress, j.errors -> -1 ->> 'message' as error,
       extract(epoch from clock_timestamp() - j.claimed_at)::float8 as running, extract(epoch from j.due_at - clock_timestamp())::float8 as due
from howdah.jobs j where j.state in ('running', 'retrying') order by j.state desc, coalesce(j.claimed_at, j.due_at) limit $1
