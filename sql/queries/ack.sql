-- Writes what came of attempts: ids $1, leases $2, outcomes $3, results $4, errors $5, delays $6, seconds since the start $7 and of the run
-- $8, last progresses $9; keep history $10. Gives the ids that it wrote. Safe to repeat.
select howdah.ack($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) as id
