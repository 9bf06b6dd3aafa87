"""The laboratory: each experiment of the paper on the picturebook, small enough for anyone to run again."""
