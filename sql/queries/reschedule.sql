-- Moves the queued job $1 to the time $2.
select howdah.reschedule($1, $2)
