"""Packed data on disk: pairs, shards, manifests, readers, splits."""
