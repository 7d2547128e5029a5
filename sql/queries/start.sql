-- Writes that the jobs with ids $1 and leases $2 started $3 seconds ago, and gives the ids that are still held. A row that somebody holds this
-- moment is passed over: the next round writes it.
select howdah.note_started($1, $2, $3) as id
