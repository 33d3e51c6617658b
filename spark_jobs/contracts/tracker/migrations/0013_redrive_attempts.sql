-- A replay that is tried again by itself numbers its micro-batches anew until one is committed: a mark is known by the
-- positions that it is for, which no attempt uses twice.
ALTER TABLE dead_letter_redrive DROP CONSTRAINT dead_letter_redrive_pkey, ADD PRIMARY KEY (replay_id, first_position);
