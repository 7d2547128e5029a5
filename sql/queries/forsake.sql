-- Leaves to the rescue the jobs with ids $2 and leases $3, which worker $1 holds and knows nothing of; gives their ids.
select howdah.forsake($1, $2, $3) as id
