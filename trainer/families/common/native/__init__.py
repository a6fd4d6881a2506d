"""Names of original files: how diffusers' modules lie in them."""
