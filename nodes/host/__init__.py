"""The seam to ComfyUI: nothing outside this folder imports comfy, server, folder_paths or execution."""
