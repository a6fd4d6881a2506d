"""Weights that lie in ComfyUI's own storages: views of them, the copy that is loaded now, the files they are mapped from."""
