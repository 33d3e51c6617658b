"""Pages that the API server has for the tasks of this provider; only for whoever may see the task."""
