"""The mini VLM: LLaVA's form (CLIP vision tower, MLP projector, Llama), trained to caption, to answer and to continue
stories. It knows nothing of retrieval. Only training scenes are used."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from ..scenes import Scene, caption, questions, random_scene, render_array
from ..stories import draw_process, draw_story
from .loop import image_processor, pixel_values, save_half, train
from .tokenizer import CHAT_TEMPLATE, IMAGE, build_tokenizer

IMAGE_TOKENS = 10  # CLS, from which names are learnt soonest, and one for each cell of the 3x3 grid
IGNORED = -100
FIRST_WORDS = 0.15  # share of the steps
DESCRIBE = {
    "full": ("describe the picture in detail.", "tell me all that you see."),
    "brief": ("what is in the picture?", "describe the picture briefly."),
}
# pieces: text that is learnt (str, True), text that is not (str, False), and pictures
Piece = tuple[str, bool] | np.ndarray


def chat(scene: Scene, turns: list[tuple[str, str]]) -> list[Piece]:
    """Turns about one picture, the answers to be learnt."""
    pieces: list[Piece] = [("USER: ", False), render_array(scene)]
    for index, (question, answer) in enumerate(turns):
        opening = "\n" if index == 0 else "USER: "
        pieces += [(f"{opening}{question} ASSISTANT:", False), (f" {answer}</s>", True)]
    return pieces


def description(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A request for a caption, and the caption."""
    detail = rng.choice(tuple(DESCRIBE))
    return rng.choice(DESCRIBE[detail]), caption(scene, rng, detail)


def draw_first_words(rng: random.Random) -> list[Piece]:
    """Name the one thing in a picture. Without a while of this, names took very long to be learnt."""
    scene = random_scene(rng, "train", count=1)
    _, question, answer = questions(scene, rng)[0]
    return chat(scene, [rng.choice(((question, answer), description(scene, rng)))])


def draw_chat(rng: random.Random) -> list[Piece]:
    """A caption on request, or two to four questions about one picture."""
    scene = random_scene(rng, "train")
    if rng.random() < 0.4:
        return chat(scene, [description(scene, rng)])
    asked = questions(scene, rng)
    # in this order, in which no question gives away a later answer to "what"
    chosen = sorted(rng.sample(range(len(asked)), rng.randint(2, 4)))
    return chat(scene, [asked[index][1:] for index in chosen])


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
        both: list[Piece] = [(words, True), render_array(scene)]
        for piece in both if words_first else reversed(both):
            pieces += [("\n", False)] if pieces else []
            pieces.append(piece)
    return pieces


def build_processor() -> LlavaProcessor:
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
    tower = {name: weight for name, weight in clip.vision_model.state_dict().items()}
    model.model.vision_tower.load_state_dict(tower)
    model.generation_config = GenerationConfig(max_new_tokens=64, do_sample=False, **special)
    return model


def collator(processor: LlavaProcessor) -> Any:
    tokenizer = processor.tokenizer
    image = [tokenizer.convert_tokens_to_ids(IMAGE)] * IMAGE_TOKENS

    def collate(samples: list[list[Piece]]) -> dict[str, torch.Tensor]:
        texts = [piece[0] for sample in samples for piece in sample if isinstance(piece, tuple)]
        encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
        rows, pictures = [], []
        for sample in samples:
            ids, labels = [tokenizer.bos_token_id], [IGNORED]
            for piece in sample:
                if isinstance(piece, tuple):
                    tokens = next(encoded)
                    ids += tokens
                    labels += tokens if piece[1] else [IGNORED] * len(tokens)
                else:
                    pictures.append(piece)
                    ids += image
                    labels += [IGNORED] * IMAGE_TOKENS
            rows.append((ids, labels))
        length = max(len(ids) for ids, _ in rows)
        batch = {
            "input_ids": [ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows],
            "labels": [labels + [IGNORED] * (length - len(labels)) for _, labels in rows],
            "attention_mask": [[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows],
        }
        tensors = {name: torch.tensor(values) for name, values in batch.items()}
        return {**tensors, "pixel_values": pixel_values(pictures)}

    return collate


def train_vlm(work: Path, out: Path, steps: int, batch_size: int = 64) -> None:
    processor = build_processor()
    model = build_model(processor, CLIPModel.from_pretrained(out / "mini-clip"))
    first = int(FIRST_WORDS * steps)
    later = [draw_chat, draw_chat, draw_chat, draw_document]
    kinds = [draw_first_words] * first + [later[step % len(later)] for step in range(steps - first)]
    collate, folder = collator(processor), work / "mini-vlm"
    train(model, kinds, collate, folder, steps=steps, batch_size=batch_size, learning_rate=1e-3)
    save_half(model, out / "mini-vlm")
    processor.save_pretrained(out / "mini-vlm")
