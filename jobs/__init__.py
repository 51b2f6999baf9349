"""From a sweep file to finished runs: the runs and their parents, local processes or SLURM arrays, and what they do."""
