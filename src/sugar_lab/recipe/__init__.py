"""The recipe of the mini checkpoints: `python -m sugar_lab.recipe` trains all of them from nothing."""
