"""`python -m sugar_cli` is `sugar-hf`, for launchers such as torchrun."""

from .app import main

main()
