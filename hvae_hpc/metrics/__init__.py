"""Measures of masks, of images and of sets of images: plain functions of numpy arrays."""
