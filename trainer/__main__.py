"""python -m lora_loom.trainer"""

from .cli.main import main

main()
