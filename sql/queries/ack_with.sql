-- Writes what came of one attempt: job $1, lease $2, outcome $3, result $4, error $5, delay $6, seconds since the start $7 and of the run
-- $8, last progress $9, keep history $10; and enqueues the jobs $11 in the same commit. False: nothing was written. What somebody holds, a
-- unique key in an open transaction, is not waited for longer than a moment (55P03).
with patience as materialized (
  select set_config('lock_timeout', '200ms', true))
select howdah.ack_with($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) from patience
