"""Why runs fail, and what is done about it."""
