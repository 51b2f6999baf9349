"""Runs to SLURM arrays: bundles, the prepared submission, its preview, and sbatch."""
