"""Where text encoders, tokenizers and VAEs come from: a diffusers folder, a whole checkpoint, or files by themselves."""
