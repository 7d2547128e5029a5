-- Takes one suspect for worker $1 under lease $2, of kinds $3 and queues $4. $5: its start is written in the same commit; else it must be
-- written before its handler is called. $6 under lease $7 is the one before it, which has run, or null.
select * from howdah.claim_suspect($1, $2, $3, $4, $5, $6, $7)
