-- How many jobs died in the last day, by queue and kind. Goes by the index job_history_dead.
select queue, kind, count(*) as jobs from howdah.job_status
where state = 'dead' and finished_at >= now() - interval '1 day' group by queue, kind order by queue, kind
