"""OneTrainer's files."""
