-- The names of the signing keys that each process uses, the newest first, with blanks between: who shares none with the others
-- would refuse all that they deliver.
ALTER TABLE taskqueue_process ADD COLUMN key_ids TEXT NOT NULL DEFAULT '';
