"""Training of the mini VLM, which has LLaVA's form: CLIP vision tower, MLP projector, Llama.

It learns to caption, to answer and to continue stories, and nothing of retrieval. Only training scenes are used.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    CLIPModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.scenes import (
    BACKGROUNDS,
    PLACES,
    SIZES,
    Item,
    Scene,
    caption,
    questions,
    random_scene,
    render_array,
    split_of,
)
from sugar_hf.picturebook.stories import draw_process, draw_story

from .loop import image_processor, pixel_values, save_half, train
from .mini_tokenizer import CHAT_TEMPLATE, IMAGE, build_tokenizer

CELLS = 9
IMAGE_TOKENS = 1 + CELLS  # CLS and one for each cell of the 3x3 grid
IGNORED = -100
FIRST_WORDS = 500  # steps
DESCRIBE = {
    "full": ("describe the picture in detail.", "tell me all that you see."),
    "brief": ("what is in the picture?", "describe the picture briefly."),
}


@dataclass
class Picture:
    """A picture in a sample.

    `names`, if given, are what its nine cells' tokens learn to predict, None for nothing. `scene` is what it shows,
    for what is learnt of its gist.
    """

    pixels: np.ndarray
    names: list[str | None] | None = None
    scene: Scene | None = None


@dataclass
class Marked:
    """A text whose words are not learnt.

    Its tokens of things and colours learn to tell, yes or no, whether the picture has them. An answer has to find out
    the same, and does not begin to without a while of these. With a `scene`, they can also learn where the things are,
    and how large.
    """

    text: str
    present: frozenset[str]
    scene: Scene | None = None


Piece = tuple[str, bool] | Marked | Picture  # a text and whether it is learnt, or a picture


def seen_in(scene: Scene) -> frozenset[str]:
    """The things and the colour that a picture has."""
    return frozenset({scene.background, *(item.concept for item in scene.items)})


def chat(picture: Picture, turns: list[tuple[str, str]], marked: Scene | None = None) -> list[Piece]:
    """Turns about one picture, the answers to be learnt; the questions are marked if its scene is given."""
    pieces: list[Piece] = [("USER: ", False), picture]
    for index, (question, answer) in enumerate(turns):
        opening = "\n" if index == 0 else "USER: "
        text = f"{opening}{question} ASSISTANT:"
        pieces += [
            (text, False) if marked is None else Marked(text, seen_in(marked), marked),
            (f" {answer}</s>", True),
        ]
    return pieces


def draw_board(rng: random.Random) -> list[Piece]:
    """A crowded scene, all of it told in words and, for the first steps' sake, by its image tokens too.

    Without a while of these the answers' attention did not find the pictures' tokens: 64,000 chats about single
    things taught the backgrounds' colours and not one name.
    """
    background = rng.choice(tuple(BACKGROUNDS))
    concepts: list[str] = []
    for concept in rng.sample(CONCEPTS, 80):
        if len(concepts) < 9 and all(split_of(concept, other) == "train" for other in (*concepts, background)):
            concepts.append(concept)
    places = sorted(rng.sample(range(9), len(concepts)))
    items = [Item(c, rng.choice(tuple(SIZES)), place) for c, place in zip(concepts, places, strict=True)]
    scene = Scene(tuple(items), background, rng.getrandbits(31))
    if rng.random() < 0.5:
        things = [f"{rng.choice(PLACES[item.place])} {item.article()} {item.concept}" for item in items]
        turns = [("what is in each place?", f"{', '.join(things)}.")]
    else:
        turns = [draw_turn(item, rng) for item in rng.sample(items, len(items))]
    names = [found.concept if (found := scene.at(place)) else None for place in range(9)]
    return chat(Picture(render_array(scene), names), turns)


def draw_turn(item: Item, rng: random.Random) -> tuple[str, str]:
    """One question about one thing of many."""
    kind = rng.choice(("what", "what", "where", "size"))
    if kind == "what":
        return f"what is {rng.choice(PLACES[item.place])}?", item.concept
    if kind == "where":
        return f"where is the {item.concept}?", PLACES[item.place][0]
    return f"is the {item.concept} small or large?", item.size


def description(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A request for a caption, and the caption."""
    detail = rng.choice(tuple(DESCRIBE))
    return rng.choice(DESCRIBE[detail]), caption(scene, rng, detail)


def draw_chat(rng: random.Random) -> list[Piece]:
    """A caption on request, or one to four questions about one picture."""
    scene = random_scene(rng, "train")
    if rng.random() < 0.4:
        return chat(Picture(render_array(scene)), [description(scene, rng)])
    asked = questions(scene, rng)
    # in this order, in which no question gives away a later answer to "what"; each kind often stands alone
    chosen = sorted(rng.sample(range(len(asked)), rng.choice((1, 1, 2, 4))))
    return chat(Picture(render_array(scene)), [asked[index][1:] for index in chosen])


def draw_document(rng: random.Random) -> list[Piece]:
    """A picture with its caption, or a whole story with its sentences before or after the pictures."""
    if rng.random() < 0.4:
        scene = random_scene(rng, "train")
        pairs = [(caption(scene, rng, rng.choice(("full", "brief"))), scene)]
    else:
        story = (draw_process if rng.random() < 0.3 else draw_story)(rng, "train")
        pairs = list(zip(story.sentences, story.frames, strict=True))
    words_first = rng.random() < 0.5
    pieces: list[Piece] = []
    for words, scene in pairs:
        both: list[Piece] = [(words, True), Picture(render_array(scene))]
        for piece in both if words_first else reversed(both):
            pieces += [("\n", False)] if pieces else []
            pieces.append(piece)
    return pieces


def text_of(piece: tuple[str, bool] | Marked) -> str:
    """Return the text of a piece."""
    return piece.text if isinstance(piece, Marked) else piece[0]


def build_processor() -> LlavaProcessor:
    """Build the processor of the mini VLM."""
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=build_tokenizer(add_eos=False),
        patch_size=32,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: LlavaProcessor, clip: CLIPModel) -> LlavaForConditionalGeneration:
    """A new LLaVA whose vision tower starts from the mini CLIP's."""
    tokenizer = processor.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 1024,
        "initializer_range": 0.06,  # about 1/sqrt(hidden size); at 0.02, made for wide models, attention stays flat
        **special,
    }
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    model.generation_config = GenerationConfig(max_new_tokens=64, do_sample=False, **special)
    return model


class Collator:
    """Makes batches of the mini VLM's samples.

    Args:
        processor: the mini VLM's.
    """

    def __init__(self, processor: LlavaProcessor) -> None:
        self.tokenizer = processor.tokenizer
        self.image = [self.tokenizer.convert_tokens_to_ids(IMAGE)] * IMAGE_TOKENS
        # a cell's token predicts the first token of the name in an answer
        self.named = {concept: self._first_token(concept) for concept in CONCEPTS}
        self.words = {self._first_token(word): word for word in (*CONCEPTS, *BACKGROUNDS)}
        self.no, self.yes = self._first_token("no"), self._first_token("yes")

    def _first_token(self, word: str) -> int:
        return self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]

    def lay_out(self, samples: list[list[Piece]]) -> tuple[list[tuple[list[int], list[int]]], list[list[int]]]:
        """The token ids and labels of each sample, and of each sample the index after each piece's last token."""
        texts = [text_of(piece) for sample in samples for piece in sample if not isinstance(piece, Picture)]
        encoded = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        rows: list[tuple[list[int], list[int]]] = []
        ends: list[list[int]] = []
        for sample in samples:
            ids, labels = [self.tokenizer.bos_token_id], [IGNORED]
            ends.append([])
            for piece in sample:
                if isinstance(piece, Picture):
                    ids += self.image
                    cells = [self.named[name] if name else IGNORED for name in piece.names or [None] * CELLS]
                    # the label at i belongs to the token before it: CLS and the first cell have none, the last cell's
                    # would stand on the text that follows and is left out
                    labels += [IGNORED, IGNORED, *cells[:-1]]
                else:
                    tokens = next(encoded)
                    ids += tokens
                    labels += self._labels(piece, tokens)
                ends[-1].append(len(ids))
            rows.append((ids, labels))
        return rows, ends

    def _labels(self, piece: tuple[str, bool] | Marked, tokens: list[int]) -> list[int]:
        if isinstance(piece, tuple):
            return tokens if piece[1] else [IGNORED] * len(tokens)
        # again, the label at i belongs to the token before it
        words = [self.words.get(token) for token in tokens[:-1]]
        return [IGNORED, *((self.yes if w in piece.present else self.no) if w else IGNORED for w in words)]

    def pad(self, rows: list[tuple[list[int], list[int]]], samples: list[list[Piece]]) -> dict[str, torch.Tensor]:
        """The model's inputs from what `lay_out` gave."""
        length = max(len(ids) for ids, _ in rows)
        batch = {
            "input_ids": [ids + [self.tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows],
            "labels": [labels + [IGNORED] * (length - len(labels)) for _, labels in rows],
            "attention_mask": [[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows],
        }
        tensors = {name: torch.tensor(values) for name, values in batch.items()}
        pictures = [piece.pixels for sample in samples for piece in sample if isinstance(piece, Picture)]
        return {**tensors, "pixel_values": pixel_values(pictures)} if pictures else tensors

    def __call__(self, samples: list[list[Piece]]) -> dict[str, torch.Tensor]:
        return self.pad(self.lay_out(samples)[0], samples)


def train_vlm(work: Path, out: Path, steps: int, batch_size: int = 64) -> None:
    """Train the mini VLM and save it."""
    processor = build_processor()
    model = build_model(processor, CLIPModel.from_pretrained(out / "mini-clip"))
    first = min(FIRST_WORDS, steps // 4)
    later = [draw_chat, draw_chat, draw_chat, draw_chat, draw_document]
    kinds = [draw_board] * first + [later[step % len(later)] for step in range(steps - first)]
    collate, folder = Collator(processor), work / "mini-vlm"
    train(model, kinds, collate, folder, steps=steps, batch_size=batch_size, learning_rate=1e-3)
    save_half(model, out / "mini-vlm")
    processor.save_pretrained(out / "mini-vlm")
