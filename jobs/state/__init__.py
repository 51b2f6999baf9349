"""How every run stands, read from its files, from what was submitted and from the queue."""
