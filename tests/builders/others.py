"""Idefics 3, SmolVLM, Gemma 3, InternVL and PaliGemma."""

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from sugar_hf.model.processing_sugar import without_video

from .parts import (
    GEMMA_TEMPLATE,
    IDEFICS_TEMPLATE,
    PALIGEMMA_TEMPLATE,
    QWEN_TEMPLATE,
    build_tokenizer,
    finish,
    text_config,
    vision_config,
)


def _tiles_tokenizer() -> PreTrainedTokenizerFast:
    tiles = tuple(f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6))
    return build_tokenizer(
        ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles),
        eos_token="<end_of_utterance>",
    )


def build_tiny_idefics3(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Idefics 3: an image becomes tiles, with row and column tokens and line breaks among its image tokens."""
    torch.manual_seed(seed)
    tokenizer = _tiles_tokenizer()
    config = Idefics3Config(
        vision_config=vision_config(image_size=32, patch_size=8),
        text_config={"model_type": "llama", **text_config(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    image_processor = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)
    return finish(Idefics3ForConditionalGeneration(config), tokenizer), processor


def build_tiny_smolvlm(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """SmolVLM: tiles as Idefics 3; its processor asks its video processor even for the chat template."""
    torch.manual_seed(seed)
    tokenizer = _tiles_tokenizer()
    config = SmolVLMConfig(
        vision_config=vision_config(image_size=32, patch_size=8),
        text_config={"model_type": "llama", **text_config(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    image_processor = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = without_video(SmolVLMProcessor)(
        image_processor, tokenizer, None, image_seq_len=4, chat_template=IDEFICS_TEMPLATE
    )
    return finish(SmolVLMForConditionalGeneration(config), tokenizer), processor


def build_tiny_gemma3(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Gemma 3: the tokens of an image see each other; sliding windows; the placeholder is not the image token."""
    torch.manual_seed(seed)
    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
        "eos_token": "<end_of_turn>",
    }
    tokenizer = build_tokenizer((*names.values(), "<start_of_turn>"), **names)
    config = Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **vision_config(image_size=32, patch_size=8)},
        text_config={
            **text_config(tokenizer),
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    image_processor = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = Gemma3Processor(image_processor, tokenizer, chat_template=GEMMA_TEMPLATE, image_seq_length=4)
    return finish(Gemma3ForConditionalGeneration(config), tokenizer), processor


def build_tiny_internvl(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """InternVL: tiles by the image's shape and one of the whole, all of them in one run of image tokens."""
    torch.manual_seed(seed)
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
        "eos_token": "<|im_end|>",
    }
    tokenizer = build_tokenizer((*names.values(), "<|im_start|>"), bos=False, **names)
    config = InternVLConfig(
        vision_config=vision_config(image_size=32, patch_size=8),
        text_config={"model_type": "qwen2", **text_config(tokenizer)},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    processor = without_video(InternVLProcessor)(
        GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=3),
        tokenizer,
        image_seq_length=4,
        chat_template=QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n"),
    )
    return finish(InternVLForConditionalGeneration(config), tokenizer), processor


def build_tiny_paligemma(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """PaliGemma: what comes before the answer sees all of it; bos comes after the last image, none without images."""
    return _paligemma(seed, {"model_type": "gemma", "head_dim": 8})


def build_tiny_paligemma2(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """PaliGemma 2, of the same class: logits are capped after the output embeddings; sliding windows."""
    text = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 24, "final_logit_softcapping": 3.0}
    return _paligemma(seed, {"model_type": "gemma2", **text})


def _paligemma(seed: int, text: dict) -> tuple[PreTrainedModel, ProcessorMixin]:
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(("<image>",), bos=False, bos_token="<s>")
    image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    image_processor.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor, tokenizer, chat_template=PALIGEMMA_TEMPLATE)  # adds tokens
    config = PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **vision_config(image_size=32, patch_size=8),
            "vision_use_head": False,
        },
        text_config={**text_config(tokenizer), **text},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return finish(PaliGemmaForConditionalGeneration(config), tokenizer), processor
