"""Ten thousand damaged files through the real commands: ``make fuzz``."""
