-- Retries the ended jobs $1, and gives each with its new job's id: null where a live job holds the unique key. Of several with one
-- key the newest is retried. What comes in between (another retry of the same key) refuses the whole call.
with chosen as materialized (
  select j.id, j.unique_key is not null and (
      row_number() over (partition by j.unique_key order by j.id desc) > 1
      or exists (select from howdah.job_status l where l.finished_at is null and l.unique_key = j.unique_key)) as held
  from howdah.job_status j where j.id = any ($1::bigint[]) and j.finished_at is not null)
select c.id, case when not c.held then howdah.retry(c.id) end as new_id from chosen c order by c.id
