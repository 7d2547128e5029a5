-- Worker $1 lives. No row: it has been taken for dead. `leads`: upkeep is this worker's. `suspects`: some wait to be run. `signals`:
-- somebody wants something of running jobs.
select leads, suspects, signals from howdah.worker_beat($1)
