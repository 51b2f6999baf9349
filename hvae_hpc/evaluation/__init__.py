"""The stages after training: generated pairs, copies, likelihood, quality, and the U-Nets."""
