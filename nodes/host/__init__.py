"""The seam to ComfyUI. Nothing outside this folder imports comfy, server, folder_paths or execution."""
