-- Takes ready jobs for worker $1 under lease $2, of kinds $3: from queue $4[i] at most $5[i]. Lines $6…$10 say where to look
-- (see howdah.claim_ready). `newest` is the last id given out when this ran, on every row; with nothing to claim there is one row whose
-- id is null. Without the left join an empty claim could not say how far it has seen.
-- A sequence that never gave out an id says 1, too: that would be a mark behind which the first job lies.
select c.*, case when s.is_called then s.last_value else 0 end as newest
from howdah.jobs_id_seq s left join howdah.claim_ready($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) c on true
