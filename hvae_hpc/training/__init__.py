"""The one training loop of all networks: batches, checkpoints, and the train stage.

Nothing here imports torchio, pandas or matplotlib: every array element pays for what it imports.
"""
