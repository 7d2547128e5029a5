-- Writes completions: ids $1, leases $2, results $3, seconds since the start $4 and of the run $5; keep history $6. Gives the ids that it did not
-- write; null, and nothing is written, if somebody else holds one of the rows. Safe to repeat.
select howdah.ack_completed($1, $2, $3, $4, $5, $6) as ids
