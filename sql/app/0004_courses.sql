-- Courses, their documents, and what is made of them.
select;
