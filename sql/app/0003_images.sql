-- Images of posts.
select;
