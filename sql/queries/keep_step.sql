-- Keeps what step $3 of job $1 gave, $4, while the job is held under lease $2, and gives what is kept; null: the lease is lost. Safe to
-- repeat: the first result stands. A row that somebody holds is not waited for longer than a moment (55P03), for others have steps, too.
with patience as materialized (
  select set_config('lock_timeout', '200ms', true))
select howdah.keep_step($1, $2, $3, $4) from patience
