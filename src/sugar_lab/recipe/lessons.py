"""The mini VLM's lessons: to see each thing, to tell what is there and what is not, to answer exercises of all kinds.

A small model that is only asked questions learns the colours and the places, and goes on guessing at yes and no. Three
things get it past that. The vision tower learns first, by itself, to name what each cell shows, in the words' own
embeddings. Names in questions then learn whether the picture has them (see `Marked`). And Muon gets as far as AdamW in
a third of the steps.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.scenes import BACKGROUNDS, PLACES, SIZES, Item, Scene, render_array, split_of
from sugar_hf.picturebook.signs import CHARACTERS, LENGTH, SIGN, draw_text

from ..exercises import all_exercises
from ..exercises.crowds import draw_crowd, things
from .interviews import draw_choices, draw_interview, draw_told
from .loop import Draw, MuonWithAdamW, pixel_values, save_half, train
from .pieces import by_length
from .vlm_recipe import CELLS, IGNORED, Collator, Marked, Picture, Piece, draw_chat, draw_document, seen_in

NAMING_SHARE, NAMING_BATCH = 0.2, 96  # of the steps; pictures are cheap where no text is read
LEARNING_RATE, OTHER_LEARNING_RATE = 4e-3, 1e-3  # Muon's and AdamW's
FIRST_BOARDS = 120  # steps
BOARD_WORDS = 24
ASKED_THINGS, ASKED_SIGNS = 3, 4
GROUPS = 4  # of exercises of similar length


def draw_full_scene(rng: random.Random, count: int, signs: int) -> Scene:
    """A training scene of `count` things, or fewer where combinations are kept for other splits, and some signs."""
    background = rng.choice(tuple(BACKGROUNDS))
    names: list[str] = []
    for name in rng.sample(CONCEPTS, 60):
        if len(names) < count and all(split_of(name, other) == "train" for other in (*names, background)):
            names.append(name)
    places = rng.sample(range(CELLS), signs + len(names))
    items = [Item(SIGN, "large", place, draw_text(rng)) for place in places[:signs]]
    items += [Item(name, rng.choice(tuple(SIZES)), place) for name, place in zip(names, places[signs:], strict=True)]
    return Scene(tuple(items), background, rng.getrandbits(31))


# ---- to see ----

#: What each cell of a picture is asked for: the name, what kind of thing it is, the background, the sign's characters.
KINDS = ("nothing", *SIZES, SIGN)
PROBES = (len(KINDS), len(BACKGROUNDS), *[len(CHARACTERS)] * LENGTH)


def draw_cells(rng: random.Random) -> tuple[np.ndarray, list[list[int]]]:
    """A picture, and the targets of its nine cells: the name and one for each of `PROBES`."""
    scene = draw_full_scene(rng, rng.choice((3, 5, 7)), rng.choice((0, 1, 2)))
    background = tuple(BACKGROUNDS).index(scene.background)
    targets = [[IGNORED, 0, background] + [IGNORED] * LENGTH for _ in range(CELLS)]
    for item in scene.items:
        cell = targets[item.place]
        cell[1] = KINDS.index(SIGN if item.text else item.size)
        if item.text:
            cell[3:] = [CHARACTERS.index(character) for character in item.text]
        else:
            cell[0] = CONCEPTS.index(item.concept)
    return render_array(scene), targets


class Naming(nn.Module):
    """Trains a vision tower and its projector.

    Each cell's projection shall lie near the embedding of the thing's name, so that to the language model pictures are
    words. Linear probes shall read the rest from it.
    """

    def __init__(self, model: LlavaForConditionalGeneration, names: torch.Tensor) -> None:
        super().__init__()
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        words = model.get_input_embeddings().weight[names].detach().clone()  # (concepts, width)
        self.register_buffer("words", normalize(words - words.mean(0), dim=-1), persistent=False)
        self.probe = nn.Linear(words.shape[1], sum(PROBES))

    def forward(self, pixel_values: torch.Tensor, cells: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss of pictures (B, 3, 96, 96) with targets (B, 9, 1 + probes)."""
        projected = self.projector(self.tower(pixel_values).last_hidden_state)[:, 1:]  # without CLS
        # as the language model's first norm has it
        projected = projected * projected.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        logits = [projected @ self.words.T, *self.probe(projected).split(PROBES, dim=-1)]
        losses = [
            cross_entropy(each.flatten(0, 1), cells[..., index].flatten(), ignore_index=IGNORED)
            for index, each in enumerate(logits)
        ]
        return {"loss": torch.stack(losses).sum()}


def collate_cells(drawn: list[tuple[np.ndarray, list[list[int]]]]) -> dict[str, torch.Tensor]:
    """Make a batch of pictures and the names of their cells."""
    pictures, targets = zip(*drawn, strict=True)
    return {"pixel_values": pixel_values(list(pictures)), "cells": torch.tensor(targets)}


# ---- to tell and to answer ----


def draw_words(rng: random.Random) -> list[Piece]:
    """A picture and a list of names, half of them of things that it shows, all of them marked."""
    scene = draw_crowd(rng, "train", count=rng.choice((2, 3, 4, 5)), sign=False)
    here = [item.concept for item in things(scene)]
    words = [rng.choice(here if rng.random() < 0.5 else CONCEPTS) for _ in range(BOARD_WORDS)]
    return [("USER: ", False), Picture(render_array(scene)), Marked(f" {' '.join(words)}.", seen_in(scene), scene)]


def draw_signs(rng: random.Random) -> list[Piece]:
    """A scene of several signs and things, all of them asked for: what is written needs many examples to be read."""
    scene = draw_full_scene(rng, ASKED_THINGS, ASKED_SIGNS)
    told: list[Piece] = [("USER: ", False), Picture(render_array(scene))]
    opening = "\n"
    for item in rng.sample(scene.items, len(scene.items)):
        where = rng.choice(PLACES[item.place])
        question = f"what does the sign {where} say?" if item.text else f"what is {where}?"
        told += [(f"{opening}{question} ASSISTANT:", False), (f" {item.text or item.concept}</s>", True)]
        opening = "USER: "
    return told


def lesson_plan(steps: int) -> Sequence[Draw]:
    """Return what each step's batch holds.

    Names come first, then many questions about one picture, which teach most, in turn with exercises of all kinds and
    with what the model could do before.
    """
    first, second, third, fourth = by_length(all_exercises(), GROUPS)
    turns: list[Draw] = [draw_interview, first, draw_signs, draw_interview, second, draw_told, draw_interview, third]
    turns += [draw_chat, draw_interview, fourth, draw_document]
    boards = min(FIRST_BOARDS, steps // 4)
    return [draw_words] * boards + [turns[step % len(turns)] for step in range(steps - boards)]


def train_lessons(work: Path, out: Path, steps: int, batch_size: int = 16) -> None:
    """Train the mini VLM in `out` further, and write it back."""
    processor = LlavaProcessor.from_pretrained(out / "mini-vlm")
    model = LlavaForConditionalGeneration.from_pretrained(out / "mini-vlm")
    names = processor.tokenizer([f" {name}" for name in CONCEPTS], add_special_tokens=False)["input_ids"]
    naming = Naming(model, torch.tensor([tokens[0] for tokens in names]))
    train(
        naming,
        [draw_cells],
        collate_cells,
        work / "mini-vlm-naming",
        steps=max(1, round(NAMING_SHARE * steps)),
        batch_size=min(NAMING_BATCH, 6 * batch_size),
        learning_rate=1e-3,
    )
    _learn(model, processor, lesson_plan(steps), work / "mini-vlm-lessons", batch_size, LEARNING_RATE, seed=0)
    save_half(model, out / "mini-vlm")


def practice_plan(steps: int) -> Sequence[Draw]:
    """Return what each step's batch holds, for a model that has had its lessons.

    It is more of what is hard for it: options, facts, and exercises of several pictures.
    """
    first, second, third, fourth = by_length(all_exercises(), GROUPS)
    turns: list[Draw] = [draw_choices, third, draw_told, fourth, draw_interview, second, draw_choices, fourth]
    turns += [draw_told, third, draw_interview, first, draw_document, fourth, draw_chat]
    return [turns[step % len(turns)] for step in range(steps)]


def train_practice(work: Path, out: Path, steps: int, batch_size: int = 16) -> None:
    """Train the mini VLM in `out`, which has had its lessons, once more, and write it back."""
    processor = LlavaProcessor.from_pretrained(out / "mini-vlm")
    model = LlavaForConditionalGeneration.from_pretrained(out / "mini-vlm")
    # another seed, so that it does not draw what the lessons have drawn
    folder, learning_rate = work / "mini-vlm-practice", 0.75 * LEARNING_RATE
    _learn(model, processor, practice_plan(steps), folder, batch_size, learning_rate, seed=6000)
    save_half(model, out / "mini-vlm")


def _learn(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    plan: Sequence[Draw],
    folder: Path,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    model.model.vision_tower.requires_grad_(False)
    train(
        model,
        plan,
        Collator(processor),
        folder,
        steps=len(plan),
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=lambda: MuonWithAdamW(model, learning_rate, OTHER_LEARNING_RATE),
        seed=seed,
    )
