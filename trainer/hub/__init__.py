"""The Hugging Face hub: a model card of a run, and its files pushed there."""
