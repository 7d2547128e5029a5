-- Enqueues the jobs $1, a JSON array as text, each with what $2 (an object as text) says where it does not speak itself.
select ordinal, id, created from howdah.enqueue_many((
  select jsonb_agg(case jsonb_typeof(a.job) when 'object' then $2::text::jsonb || a.job else a.job end order by a.place)
  from jsonb_array_elements($1::text::jsonb) with ordinality a(job, place)))
