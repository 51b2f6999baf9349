"""The figures of a sweep: one module per figure."""
