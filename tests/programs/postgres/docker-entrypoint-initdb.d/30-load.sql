\c app
CREATE TABLE numbers (number int PRIMARY KEY, word text);
INSERT INTO numbers SELECT i, md5(i::text) FROM generate_series(1, 20000) i;
CREATE FUNCTION twice(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN i * 2; END $$;
