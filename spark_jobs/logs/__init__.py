"""What a run says: events with fields, the ids of their run and micro-batch, as JSON or plain text, without secrets."""
