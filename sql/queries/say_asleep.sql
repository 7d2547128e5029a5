-- Worker $1 sleeps: enqueue is to notify. To be said before the last look at the queue, or a job is missed.
update howdah.workers set sleeps = true where id = $1 and not sleeps
