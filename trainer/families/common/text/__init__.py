"""How texts become what networks read: templates, system prompts, weighted words, language models."""
