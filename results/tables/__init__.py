"""The tables of a sweep: one class, one module per table."""
