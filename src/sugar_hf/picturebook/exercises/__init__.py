"""Exercises of the picturebook: questions of many kinds about its scenes, for training and for tests."""

from .exercise import Draw, Exercise, draw_many

__all__ = ["Draw", "Exercise", "draw_many"]
