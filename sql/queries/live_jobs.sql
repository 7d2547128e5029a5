-- How many live jobs there are by state, of queue $1, kind $2 and subject $3; null asks for nothing.
select state, count(*) as jobs from howdah.job_status
where finished_at is null
  and ($1::text is null or queue = $1) and ($2::text is null or kind = $2) and ($3::text is null or subject = $3)
group by state
