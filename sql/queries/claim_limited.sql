-- Takes jobs that have keys for worker $1 under lease $2, of kinds $3: from queue $4[i] at most $5[i]. `next_in` and `more` stand on every row (see
-- howdah.claim_limited); with nothing taken there is one row whose id is null.
select * from howdah.claim_limited($1, $2, $3, $4, $5)
