"""The picturebook: a small world of drawn stories, so that everything runs with no download.

>>> from sugar_hf import picturebook
>>> stories = picturebook.load("test", kind="story", size=2)
>>> stories[0]["messages"][0]["content"][0]["type"]
'image'
"""

from .glyphs import CONCEPTS, sprite
from .scenes import BACKGROUNDS, SPLITS, Item, Scene, caption, questions, random_scene, render
from .stories import Story, draw_process, draw_story
from .world import CHECKPOINTS, KINDS, checkpoint, load, mini_teachers

__all__ = [
    "BACKGROUNDS",
    "CHECKPOINTS",
    "CONCEPTS",
    "KINDS",
    "SPLITS",
    "Item",
    "Scene",
    "Story",
    "caption",
    "checkpoint",
    "draw_process",
    "draw_story",
    "load",
    "mini_teachers",
    "questions",
    "random_scene",
    "render",
    "sprite",
]
