"""The models, questions and documents that `rag.py` measures."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from training_models import DEVICE, random_llava
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, set_seed

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor

PIXELS = 224
SENTENCE = "a red house stands beside two trees and a dog runs past it while three cats sleep in the warm sun of noon"

# CLIP's two towers. "same" has the widths of CLIP ViT-H/14 and so many of its layers (25 of 32, 20 of 24) that it has
# as many parameters as the VLM of 0.5b; "clip-l" is CLIP ViT-L/14. Those of "small" are smaller as its VLM is.
TOWERS: dict[str, dict[str, tuple[dict[str, int], dict[str, int], int]]] = {
    "0.5b": {
        "same": (
            {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 25, "num_attention_heads": 16},
            {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 20, "num_attention_heads": 16},
            1024,
        ),
        "clip-l": (
            {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
            {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
            768,
        ),
    },
    "small": {
        "same": (
            {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 5, "num_attention_heads": 4},
            {"hidden_size": 256, "intermediate_size": 1152, "num_hidden_layers": 5, "num_attention_heads": 4},
            256,
        ),
        "clip-l": (
            {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4},
            {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 3},
            192,
        ),
    },
}
# As drawn, attention hardly tells one token from another, and what is generated depends on the last token alone. Twice
# as large, rounding decides.
ATTENTION = {"0.5b": 4.0, "small": 8.0}
VOCABULARY = {"0.5b": 49408, "small": 1408}


def random_sugar(size: str) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    """A Sugar model around a LLaVA, with random weights, those of attention so large that answers depend on all."""
    set_seed(0)
    vlm, processor = random_llava(size)
    with torch.no_grad():
        for name, weight in vlm.model.language_model.named_parameters():
            if "self_attn" in name and name.endswith("proj.weight"):
                weight *= ATTENTION[size]
    return SugarForConditionalGeneration.from_backbone(vlm).eval(), SugarProcessor(processor)


class ClipRetriever:
    """An independent retriever: CLIP with random weights, which embeds a question as the average of its parts.

    Args:
        size: The size of the VLM beside it.
        name: `same` or `clip-l`.
        tokenizer: Of the VLM; the speed does not depend on how texts are cut.
    """

    def __init__(self, size: str, name: str, tokenizer: Any) -> None:
        vision, text, dim = TOWERS[size][name]
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = CLIPConfig(
            vision_config={**vision, "image_size": PIXELS, "patch_size": 14},
            text_config={**text, "vocab_size": VOCABULARY[size], **special},
            projection_dim=dim,
        )
        set_seed(1)
        dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
        with torch.device(DEVICE):
            torch.set_default_dtype(dtype)
            self.model = CLIPModel(config).eval()
            torch.set_default_dtype(torch.float32)
        self.dim = dim
        self.tokenizer = tokenizer
        square = {"height": PIXELS, "width": PIXELS}
        self.image_processor = CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size=square)

    @torch.inference_mode()
    def embed(self, question: list[Any]) -> np.ndarray:
        """Embed a question of images and texts: (1, d) float32, a unit vector."""
        images = [part for part in question if isinstance(part, Image.Image)]
        text = " ".join(part for part in question if isinstance(part, str))
        pixels = self.image_processor(images, return_tensors="pt").pixel_values.to(DEVICE, self.model.dtype)
        limits = {"truncation": True, "max_length": self.model.config.text_config.max_position_embeddings}
        tokens = self.tokenizer([text], return_tensors="pt", **limits).to(DEVICE)
        towers = self.model.get_image_features(pixel_values=pixels), self.model.get_text_features(**tokens)
        parts = torch.cat([unit(found.pooler_output) for found in towers])  # (images + 1, d)
        return unit(parts.mean(0, keepdim=True)).float().cpu().numpy()


def unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def unit_vectors(count: int, dim: int) -> np.ndarray:
    """(count, dim) random float32 unit vectors."""
    vectors = np.random.default_rng(2).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def noise_image(draw: np.random.Generator) -> Image.Image:
    return Image.fromarray(draw.integers(0, 256, (300, 400, 3), dtype=np.uint8))


def make_question(images: int) -> list[Any]:
    """A question of images of noise and a text."""
    draw = np.random.default_rng(3)
    return [*(noise_image(draw) for _ in range(images)), f"In which of these pictures do you see that {SENTENCE}?"]


def make_documents(count: int, with_image: bool, tokenizer: Any) -> list[list[Any]]:
    """Documents of as many tokens each: the same words in another order, after an image or alone."""
    draw = np.random.default_rng(4)
    words = SENTENCE.split()
    image = noise_image(draw)
    texts: list[str] = []
    length = len(tokenizer(SENTENCE).input_ids)
    while len(texts) < count:
        drawn = [" ".join(draw.permutation(words)) for _ in range(count)]
        texts += [text for text, ids in zip(drawn, tokenizer(drawn).input_ids, strict=True) if len(ids) == length]
    return [[image, text] if with_image else [text] for text in texts[:count]]
