"""Hand the pairs of a generate run to other programs: nnU-Net data sets and PNG files."""
