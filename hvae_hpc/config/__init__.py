"""What a study asks: sweep and stage settings, networks, arms; the strict loader of TOML and JSON."""
