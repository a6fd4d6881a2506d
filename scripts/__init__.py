"""Programs that make what the repository ships. Nothing here is installed."""
