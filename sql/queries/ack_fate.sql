-- What became of acks that were not written: ids $1, leases $2, whether each was sent before $3, keep history $4.
select id, fate from howdah.ack_fate($1, $2, $3, $4)
