-- Worker $1 lives. No row: it has been taken for dead. `leads`: upkeep is this worker's. `suspects`: some wait to be run.
select leads, suspects from howdah.beat($1)
