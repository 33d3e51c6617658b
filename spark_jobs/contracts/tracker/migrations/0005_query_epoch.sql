-- Which query is a pipeline's newest is said by the fence's count, not by a clock, which may be wrong.

ALTER TABLE pipeline_query ADD COLUMN epoch bigint;
UPDATE pipeline_query q SET epoch = coalesce(r.epoch, 0) FROM pipeline_run r WHERE r.run_id = q.run_id;
ALTER TABLE pipeline_query ALTER COLUMN epoch SET NOT NULL;
