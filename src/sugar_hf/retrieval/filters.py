"""Filters on metadata."""


class Filter:
    """Placeholder until the language of filters is written."""
