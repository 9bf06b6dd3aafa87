"""LLaVA and its descendants, which tile an image by its shape."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from sugar_hf.model.processing_sugar import without_video

from .parts import QWEN_TEMPLATE, VICUNA_TEMPLATE, build_tokenizer, finish, text_config, vision_config

GRIDS = [[24, 24], [24, 48], [48, 24]]


def build_tiny_llava(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """LLaVA: 9 image tokens (24 px, patch 8, the class token left out), images of a message before its text."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(("<image>",))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_config(image_size=24, patch_size=8), projection_dim=16),
        text_config=LlamaConfig(**text_config(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=9,
        vision_feature_layer=-1,
    )
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, do_center_crop=True
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TEMPLATE,
    )
    return finish(LlavaForConditionalGeneration(config), tokenizer), processor


def build_tiny_llava_next(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-NeXT: the whole image and tiles of it, without the tiles' padding; a learnt vector ends each row."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(("<image>",))
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision_config(image_size=24, patch_size=8), projection_dim=16),
        text_config=LlamaConfig(**text_config(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=GRIDS,
        vision_feature_layer=-1,
    )
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=GRIDS
    )
    processor = LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TEMPLATE,
    )
    return finish(LlavaNextForConditionalGeneration(config), tokenizer), processor


def build_tiny_llava_onevision(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-OneVision: a single image of a sample is tiled, several are not."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(
        ("<image>", "<video>", "<|im_start|>", "<|im_end|>"), bos=False, eos_token="<|im_end|>"
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision_config(image_size=24, patch_size=8), vision_use_head=False),
        text_config=Qwen2Config(**text_config(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRIDS,
    )
    processor = without_video(LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(size={"height": 24, "width": 24}, image_grid_pinpoints=GRIDS),
        tokenizer,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n"),
    )
    return finish(LlavaOnevisionForConditionalGeneration(config), tokenizer), processor
