"""From NIfTI scans on disk to 2D image+mask pairs in HDF5 shards.

A recipe says what a data set is; packing reads every case, brings it to one orientation and grid,
takes slices, and leaves a folder of shards with a ``manifest.json`` that every later stage reads.
"""
