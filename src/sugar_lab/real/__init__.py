"""The study on real documents: two manuals and the captions of Tux Paint, split by page."""
