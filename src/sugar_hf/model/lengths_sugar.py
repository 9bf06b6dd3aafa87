"""Beginnings of a long sample, by which it is found too long before all of it is tokenised and its images are read."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from .samples_sugar import Message, Part

# What the first beginning holds at most. Each has four times as much as the one before it, and at most a quarter of
# the sample: one that turns out to be short enough costs a third more.
FIRST_IMAGES = 8
FIRST_CHARACTERS = 4096
CHARACTERS_PER_TOKEN = 32
GROWTH = 4


class Beginning(NamedTuple):
    """The beginning of a sample.

    Args:
        messages: Its parts, written without roles and without slices of texts.
        slice_count: How many slices of the sample lie in it whole.
    """

    messages: list[Message]
    slice_count: int


def character_count(messages: list[Message]) -> int:
    """Count the characters of a sample's texts."""
    return sum(len(part.text) for message in messages for part in message.parts)


def beginnings(messages: list[Message], max_length: int, max_characters: int) -> Iterator[Beginning]:
    """Give ever longer beginnings of a sample that may be far longer than wanted; none of one that is short.

    Args:
        messages: From `parse_sample`.
        max_length: The most tokens that are wanted.
        max_characters: No beginning has more.
    """
    parts = [part for message in messages for part in message.parts]
    all_characters, all_images = character_count(messages), sum(part.is_image for part in parts)
    characters, images = max(FIRST_CHARACTERS, CHARACTERS_PER_TOKEN * max_length), FIRST_IMAGES
    while characters <= max_characters and (GROWTH * characters <= all_characters or GROWTH * images <= all_images):
        yield _beginning(parts, characters, images)
        characters, images = GROWTH * characters, GROWTH * images


def _beginning(parts: list[Part], characters: int, images: int) -> Beginning:
    kept: list[Part] = []
    count = 0
    for part in parts:
        if part.is_image:
            if not images:
                break
            images -= 1
            count += 1
            kept.append(part)
            continue
        start = len(part.text) - len(part.text.lstrip())  # so that something is left of it
        end = min(len(part.text), start + characters)
        count += sum(last <= end for _, last in part.spans)
        kept.append(replace(part, text=part.text[start:end], spans=()))
        characters -= end - start
        if characters <= 0:
            break
    return Beginning([Message(None, tuple(kept))], count)
