"""What SLURM is told and what it says."""
