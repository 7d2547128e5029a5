-- Makes a schedule, or changes it; the arguments of howdah.schedule in their order, to the headers. Tells whether it is new.
select howdah.schedule($1, $2, $3, coalesce($4::text, '{}')::jsonb, $5, $6, $7, $8, $9, $10, $11, $12, $13, headers => $14::text::jsonb) as made
