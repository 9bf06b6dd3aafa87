"""What a sequence is about, by the end of each slice, and where each named thing is.

A large model's hidden state at the end of a sentence tells much of what came before. The mini VLM's does not: to write
the next word it looks back at what it needs, so nothing makes it gather. A retrieval head trained for a few hundred
steps then finds nothing to read. Here linear probes, which are thrown away afterwards, ask each slice's end for the
things told or shown so far, and the names in questions for the place and the size of what they name.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.scenes import BACKGROUNDS, PLACES, SIZES, Scene, caption, random_scene, render_array
from sugar_hf.picturebook.stories import draw_process, draw_story

from ..exercises import all_exercises
from ..exercises.crowds import draw_crowd, things
from .interviews import draw_choices, draw_interview, draw_told
from .lessons import GROUPS, LEARNING_RATE, OTHER_LEARNING_RATE, draw_words
from .loop import Draw, MuonWithAdamW, save_half, train
from .pieces import by_length
from .vlm_recipe import IGNORED, Collator, Marked, Picture, Piece, chat, draw_chat, seen_in

WORDS = (*CONCEPTS, *BACKGROUNDS)
INDEX = {word: index for index, word in enumerate(WORDS)}
SEED = 12000
ALBUM = 8  # slices at most
ASKED = 8
BOARDS = 150  # steps


# ---- documents ----


def _picture(scene: Scene) -> Picture:
    return Picture(render_array(scene), scene=scene)


def _document(parts: Sequence[str | Scene]) -> list[Piece]:
    pieces: list[Piece] = []
    for part in parts:
        pieces += [("\n", False)] if pieces else []
        pieces.append((part, True) if isinstance(part, str) else _picture(part))
    return pieces


def draw_album(rng: random.Random) -> list[Piece]:
    """Some scenes that have nothing to do with each other, each told or shown."""
    parts: list[str | Scene] = []
    for _ in range(rng.choice((2, 4, ALBUM))):
        count = rng.choice((1, 2, 2, 3, 4))
        scene = random_scene(rng, "train", count) if count < 4 else draw_crowd(rng, "train", count=count, sign=False)
        told = rng.random() < 0.7
        parts.append(caption(scene, rng, rng.choice(("full", "full", "brief")), shuffle=True) if told else scene)
    return _document(parts)


def draw_plot(rng: random.Random) -> list[Piece]:
    """A story or a process: its sentences, then its pictures, or both in turn, or either alone."""
    story = (draw_process if rng.random() < 0.3 else draw_story)(rng, "train")
    form = rng.choice(("turns", "told", "shown", "told first"))
    told, shown = story.sentences, story.frames
    parts: dict[str, list[str | Scene]] = {
        "turns": [part for pair in zip(told, shown, strict=True) for part in pair],
        "told": [*told],
        "shown": [*shown],
        "told first": [*told, *shown[:2]],
    }
    return _document(parts[form])


# ---- questions ----


def draw_wheres(rng: random.Random) -> list[Piece]:
    """A scene, and plain questions for places, sizes and names."""
    scene = draw_crowd(rng, "train", count=rng.choice((2, 3, 4, 5)), sign=False)
    turns: list[tuple[str, str]] = []
    while len(turns) < ASKED:
        item = rng.choice(things(scene))
        where = rng.choice(PLACES[item.place])
        turns.append(
            rng.choice(
                (
                    (f"where is the {item.concept}?", PLACES[item.place][0]),
                    (f"where is the {item.concept}?", PLACES[item.place][0]),
                    (f"is the {item.concept} small or large?", item.size),
                    (f"what is {where}?", item.concept),
                )
            )
        )
    return chat(_picture(scene), turns, scene)


# ---- training ----


class GistCollator(Collator):
    """Adds to a batch what the probes are asked for.

    `spans` (slices, 3): sample, first token and the index after the last one of each slice that has a gist: of a
    picture all of its tokens, of a text its last one. `gists` (slices, words): whether each word has been told or
    shown so far. `marks` (names, 4): sample and token of each name that stands in a question and in its picture, and
    the place and the size that are asked for.
    """

    def __call__(self, samples: list[list[Piece]]) -> dict[str, torch.Tensor]:
        rows, ends = self.lay_out(samples)
        spans: list[tuple[int, int, int]] = []
        gists: list[torch.Tensor] = []
        marks: list[tuple[int, int, int, int]] = []
        for number, (sample, after) in enumerate(zip(samples, ends, strict=True)):
            ids, gist, start = rows[number][0], torch.zeros(len(WORDS)), 1
            is_document = all(piece.scene for piece in sample if isinstance(piece, Picture)) and not any(
                isinstance(piece, Marked) for piece in sample
            )
            for piece, end in zip(sample, after, strict=True):
                if isinstance(piece, Marked):
                    marks += self._marks(piece, ids, number, start, end)
                elif is_document:
                    first = end - 1
                    if isinstance(piece, Picture):
                        found, first = set(seen_in(piece.scene) if piece.scene else ()), start
                    else:
                        found = {self.words[token] for token in ids[start:end] if token in self.words}
                    if found:
                        gist = gist.clone()
                        gist[[INDEX[word] for word in found]] = 1
                        spans.append((number, first, end))
                        gists.append(gist)
                start = end
        batch = self.pad(rows, samples)
        if spans:
            batch |= {"spans": torch.tensor(spans), "gists": torch.stack(gists)}
        if marks:
            batch |= {"marks": torch.tensor(marks)}
        return batch

    def _marks(
        self, piece: Marked, ids: list[int], number: int, start: int, end: int
    ) -> Iterator[tuple[int, int, int, int]]:
        if piece.scene is None:
            return
        items = {item.concept: item for item in things(piece.scene)}
        for position in range(start, end):
            item = items.get(self.words.get(ids[position], ""))
            if item is not None:
                yield number, position, item.place, tuple(SIZES).index(item.size)


class Probed(nn.Module):
    """A mini VLM with linear probes at its last hidden states, whose losses are added to its own."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.body = model.model  # without the LM head, which has the embeddings' weights
        width = model.config.text_config.hidden_size
        self.gist, self.place, self.size = (nn.Linear(width, len(kinds)) for kinds in (WORDS, PLACES, SIZES))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        spans: torch.Tensor | None = None,
        gists: torch.Tensor | None = None,
        marks: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The summed loss; see [`GistCollator`]."""
        hidden = self.body(input_ids, pixel_values, attention_mask=attention_mask).last_hidden_state
        shifted = labels[:, 1:]
        learnt = shifted != IGNORED
        logits = hidden[:, :-1][learnt] @ self.body.get_input_embeddings().weight.T
        loss = cross_entropy(logits, shifted[learnt])
        if spans is not None and gists is not None:
            # the mean over each span, from sums over all tokens so far
            sums = nn.functional.pad(hidden.cumsum(1), (0, 0, 1, 0))
            row, first, end = spans.unbind(1)
            pooled = (sums[row, end] - sums[row, first]) / (end - first)[:, None]
            scores = log_softmax(self.gist(pooled), dim=-1)
            loss = loss - ((scores * gists).sum(-1) / gists.sum(-1)).mean()
        if marks is not None:
            row, position, place, size = marks.unbind(1)
            named = hidden[row, position]
            loss = loss + cross_entropy(self.place(named), place) + cross_entropy(self.size(named), size)
        return {"loss": loss}


def gist_plan(steps: int) -> Sequence[Draw]:
    """What each step's batch holds: lists of marked names at first, then documents, and questions for every third."""
    _, second, third, fourth = by_length(all_exercises(), GROUPS)
    turns: list[Draw] = [draw_album, draw_wheres, draw_plot, draw_album, draw_interview, draw_album, draw_choices]
    turns += [draw_plot, draw_album, draw_wheres, draw_album, third, draw_plot, draw_album, draw_told, draw_album]
    turns += [fourth, draw_plot, draw_album, draw_interview, draw_album, second, draw_plot, draw_album, draw_chat]
    boards = min(BOARDS, steps // 4)
    return [draw_words] * boards + [turns[step % len(turns)] for step in range(steps - boards)]


def train_gist(work: Path, out: Path, steps: int, batch_size: int = 16) -> None:
    """Train the mini VLM in `out`, which has had its practice, and write it back."""
    processor = LlavaProcessor.from_pretrained(out / "mini-vlm")
    model = LlavaForConditionalGeneration.from_pretrained(out / "mini-vlm")
    model.model.vision_tower.requires_grad_(False)
    torch.manual_seed(SEED)
    probed = Probed(model)
    train(
        probed,
        gist_plan(steps),
        GistCollator(processor),
        work / "mini-vlm-gist",
        steps=steps,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        optimizer=lambda: MuonWithAdamW(probed, LEARNING_RATE, OTHER_LEARNING_RATE),
        seed=SEED,
    )
    save_half(model, out / "mini-vlm")
