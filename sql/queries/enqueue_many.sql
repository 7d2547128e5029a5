-- Many jobs of any sort: $1 is the text of a JSON array of objects with the argument names of howdah.enqueue. In the array's order.
select e.id, e.created from howdah.enqueue_many($1::text::jsonb) e order by e.ordinal
