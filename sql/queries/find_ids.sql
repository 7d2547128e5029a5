-- The oldest $10 (null: all) of `found`, the jobs that find_jobs finds, by id.
select id from found order by id limit $10
