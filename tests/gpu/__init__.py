"""Tests on a real GPU; skipped where there is none."""
