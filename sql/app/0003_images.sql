-- Images of posts, and what people want to be told.
select;
