-- Which periods of event time were announced as complete, and commits in the order of the fence.

-- Whoever watches commits asks after each one for what comes after a position.
CREATE INDEX batch_tracker_by_commit ON batch_tracker (pipeline_id, epoch, batch_id);
