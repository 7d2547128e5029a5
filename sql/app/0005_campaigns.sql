-- Campaigns: one text to many chats.
select;
