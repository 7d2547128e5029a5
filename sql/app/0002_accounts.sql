-- Accounts: people, what they may learn, and what they did.
select;
