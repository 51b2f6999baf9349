"""Runs to SLURM arrays: bundles, the prepared submission, its words for people, and sbatch."""
