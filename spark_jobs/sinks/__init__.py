"""Where rows go: PostgreSQL, exactly once."""
