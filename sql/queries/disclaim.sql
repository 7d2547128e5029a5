-- Gives back, uncounted, whatever worker $1 claimed under leases $2 in claims whose replies were lost. Reads the whole table: there is no
-- index on lease, on purpose.
update howdah.jobs j
set lease = null, leased_by = null, claimed_at = null, started_at = null, last_lease = j.lease, attempt = j.attempt - 1,
  gate = case when j.limits is not null or j.fifo_key is not null then (howdah.keys_of(j.limits, j.fifo_key))[1] end
where j.lease = any ($2) and j.leased_by = $1
returning j.id
