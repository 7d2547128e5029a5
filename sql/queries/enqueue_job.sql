-- Enqueues one job: kind $1, payload $2 as JSON text, then howdah.enqueue's other arguments in its order; headers as JSON text.
select id, created from howdah.enqueue($1, $2::text::jsonb, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17::text::jsonb, $18)
