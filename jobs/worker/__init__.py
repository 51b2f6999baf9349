"""What one process does with the runs that it was given."""
