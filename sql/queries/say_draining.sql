-- Worker $1 claims no more.
update howdah.workers set sleeps = false, draining = true where id = $1
