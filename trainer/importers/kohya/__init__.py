"""sd-scripts, what speaks its language, and musubi-tuner, which grew out of it."""
