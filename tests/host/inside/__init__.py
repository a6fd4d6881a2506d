"""Programs that run inside a real ComfyUI's interpreter and print JSON; the tests beside this folder start them."""
