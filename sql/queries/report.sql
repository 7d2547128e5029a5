-- Writes the progress $3 of the jobs with ids $1 and leases $2, and gives the ids that it wrote. A row that somebody holds this
-- moment is passed over: the next round writes it.
select howdah.note_progress($1, $2, $3) as id
