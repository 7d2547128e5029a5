-- Worker $1 is busy: enqueue need not notify.
update howdah.workers set sleeps = false where id = $1 and sleeps
