"""The networks: HVAE (with K = 0 the VAE), LSGAN and U-Net; torch only, no files, no SLURM.

Every model's ``forward(batch, phase)`` returns a :class:`~hvae_hpc.models.blocks.Loss` and draws
nothing. Its randomness comes in the batch, made by the model's ``draw``. So one loop trains them
all, and a training is a function of its seed.
"""
