"""From a sweep file to finished runs, in local processes or as SLURM arrays."""
