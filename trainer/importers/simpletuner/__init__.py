"""SimpleTuner's files."""
