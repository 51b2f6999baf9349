"""Runs on disk: identity, plan, folder, lease, and which runs are done."""
