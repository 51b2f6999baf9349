"""The commands of hvae-hpc that look at a sweep or act on its jobs."""
