"""Full fine-tuning: the weights of the base model themselves are trained, and files are whole models."""
