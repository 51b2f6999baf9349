"""What a study asks: stage settings, networks, arms; the strict loader of TOML and JSON."""
