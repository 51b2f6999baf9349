"""Made-up cases in real layouts, for trying and testing."""
