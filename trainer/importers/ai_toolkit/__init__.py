"""ai-toolkit's files."""
