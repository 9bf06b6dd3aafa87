"""The recipe of the mini checkpoints: `python -m sugar_hf.picturebook.recipe` trains all of them from nothing."""
