-- Which of the jobs $1 there are, and whether they have ended. An array and no join, or the planner may read all of history.
select s.id, s.finished_at is not null as ended from howdah.job_status s where s.id = any ($1::bigint[])
