"""The models and batches that `training.py` measures."""

from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from PIL import Image
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    set_seed,
)

from sugar_hf import picturebook
from sugar_hf.data import DOCUMENT_ROLE, image_part, text_part, to_sample
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.structure import TripleTeacher
from sugar_hf.training import sugar_lora_config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_llava(size: str, layers: int | None = None) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA with random weights, and a processor with the tokenizer of the mini VLM.

    `tiny`, `small`, `0.5b`, or `7b` of LLaVA-1.5's sizes, with fewer layers of its language model if asked for.
    """
    tokenizer = AutoTokenizer.from_pretrained(picturebook.checkpoint("mini-vlm"))
    vision: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    if size == "0.5b":
        text: Any = Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        pixels = 224
    elif size == "small":  # a quarter of its width and depth, in a few seconds
        text = Qwen2Config(
            vocab_size=2048,
            hidden_size=224,
            intermediate_size=1216,
            num_hidden_layers=6,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
        pixels = 224
    elif size == "tiny":  # in no time
        text = LlamaConfig(
            vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
        )
        vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        pixels = 56
    else:
        text, pixels = LlamaConfig(vocab_size=32064), 336
    text.num_hidden_layers = layers or text.num_hidden_layers
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, num_attention_heads=16, image_size=pixels, patch_size=14),
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    with torch.device(DEVICE):
        torch.set_default_dtype(dtype)
        model = LlavaForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
    shape = {"size": {"shortest_edge": pixels}, "crop_size": {"height": pixels, "width": pixels}}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(**shape),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return model, processor


def noise_rows(count: int, dim: int = 768) -> list[dict[str, Any]]:
    """Documents of an image and two texts, with random teacher vectors of the paper's teachers' width."""
    draw = np.random.default_rng(0)
    words = ["dog", "cat", "house", "red", "blue", "three", "runs", "sees"]
    rows = []
    for number in range(count):
        texts = [" ".join(draw.choice(words, int(draw.integers(15, 45)))) for _ in range(2)]
        vectors = draw.normal(size=(3, 3, dim)).astype(np.float16)
        rows.append(
            {
                "id": str(number),
                "source": "noise",
                "messages": [{"role": DOCUMENT_ROLE, "content": [image_part(), *map(text_part, texts)]}],
                "images": [Image.fromarray(draw.integers(0, 256, (300, 400, 3), dtype=np.uint8))],
                "teacher_clip": vectors[0],
                "teacher_dino": vectors[1] * np.array([[1], [0], [0]], np.float16),
                "teacher_text": vectors[2] * np.array([[0], [1], [1]], np.float16),
                "teacher_is_image": [True, False, False],
                "teacher_fingerprint": "noise",
            }
        )
    return rows


def random_teachers(tiny: bool = False) -> TripleTeacher:
    """Teachers with random weights, of the sizes of CLIP ViT-L/14, DINOv2-base and BGE-base unless tiny."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip_folder, bert_folder = picturebook.checkpoint("mini-clip"), picturebook.checkpoint("mini-bert")
    words = AutoTokenizer.from_pretrained(clip_folder)
    text: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    clip = CLIPConfig(
        text_config={**(small if tiny else text), "eos_token_id": words.eos_token_id},
        vision_config={**vision, "num_attention_heads": 16, "patch_size": 14} | (small if tiny else {}),
        projection_dim=768,
    )
    pixels = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    return TripleTeacher(
        CLIPModel(clip),
        CLIPImageProcessorPil(**pixels),
        words,
        Dinov2Model(Dinov2Config(image_size=224, **(small if tiny else {}))),
        CLIPImageProcessorPil(**pixels),
        BertModel(BertConfig(**(small if tiny else {}))),
        AutoTokenizer.from_pretrained(bert_folder),
        show_progress=False,
    )


def build(size: str, samples: int) -> tuple[Any, SugarProcessor, Any]:
    """Model (with adapters where they are trained), processor and rows with teacher vectors."""
    set_seed(0)
    if size == "mini":
        folder = picturebook.checkpoint("mini-vlm")
        model = SugarForConditionalGeneration.from_backbone(folder).to(DEVICE)
        processor = SugarProcessor.from_pretrained(folder)
        minis = {"clip": "mini-clip", "dino": "mini-dino", "text": "mini-bert"}
        teacher = TripleTeacher.from_pretrained(
            **{role: picturebook.checkpoint(name) for role, name in minis.items()}, show_progress=False
        )
        rows = picturebook.load("train", size=samples)
        return model, processor, teacher.cache(rows, lambda row: processor.slices(to_sample(row)))
    vlm, backbone_processor = random_llava(size)
    model = SugarForConditionalGeneration.from_backbone(vlm)
    adapted = get_peft_model(model, sugar_lora_config(model))
    return adapted, SugarProcessor(backbone_processor), noise_rows(samples)
