"""Tiny random models of any type that transformers maps to image-text-to-text.

A type's default configuration is brought down by the names of its sizes: widths, heads, layers, experts and the
vocabulary become small, lists of one entry for each layer keep one layer of every kind, the ids of control tokens are
numbered anew. What a name does not tell stands in `OVERRIDES`.
"""

import re
from typing import Any

import torch
from stand_in_tower import stand_in
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

stand_in()

#: Every type of the mapping.
TYPES = sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)

WIDTH, INNER, HEADS, KEY_VALUE_HEADS, HEAD_WIDTH, LAYERS, VOCABULARY = 64, 96, 4, 2, 16, 2, 640
PATCH, IMAGE = 8, 32
FIRST_CONTROL_TOKEN = 8  # what stands before: padding, begin, end

#: Sizes by the names that configurations give them, tried in this order: a number, or a function of the default.
RULES: list[tuple[str, Any]] = [
    (r"(qk_head_dim|layers_block_type)", "drop"),  # worked out from the others
    (r"(vocab_size|mel_vocab_size|unpadded_vocab_size|vocab_size_per_layer_input)", VOCABULARY),
    (r"(q_lora_rank|kv_lora_rank|hc_lowrank|laurel_rank|hidden_size_per_layer_input|moe_latent_size)", 16),
    (r"(qk_nope_head_dim|v_head_dim|qk_rope_head_dim|index_head_dim)", lambda old: min(old, HEAD_WIDTH)),
    (r"(swa_|.*_)?head_dim|d_kv|resampler_dim_head|rotary_dim|num_pos_feats", lambda old: min(old, HEAD_WIDTH)),
    (r"d_rel|posemb_grid_size|pos_emb_(height|width)", 8),
    (r"(conf_|swa_)?num_key_value_heads|linear_num_key_heads", KEY_VALUE_HEADS),
    (r"(.*_)?(num_|n_)?(attention_|sliding_attention_)?heads|index_n_heads", HEADS),
    (r"linear_num_value_heads", HEADS),
    (r"num_global_layers|resampler_depth|aligner_num_add_layers", 1),
    (r"depth|n_layers|layers|num_layers|(.*_)?(encoder|decoder|hidden)_layers|first_k_dense_replace", "layers"),
    (r"(n_routed|num|num_local|moe_num)_experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k", lambda old: min(old, 2)),
    (r"(n_|moe_num_|num_)shared_experts|n_group|topk_group", 1),
    (r".*(ffn_dim|mlp_dim|intermediate_size|ffn_hidden_size|expert_dim|intermediate_size_mlp|d_ff)", INNER),
    (
        r"(.*_)?(hidden_size|d_model|embed_dim|output_dim|out_dim|in_dim|hidden_dim|input_dim|projection_dim|width)",
        WIDTH,
    ),
    (r"word_embed_proj_dim|pooler_output_size|output_channels|moe_hidden_size", WIDTH),
    (r"image_size", "image"),
    (r"patch_size", "patch"),
    (r"num_query_tokens|latent_query_num|resampler_n(um)?_latents|canvas_length", 4),
    (r"num_position_embeddings", 16),
    (r"max_position_embeddings|max_2d_position_embeddings|seq_len|max_vit_seq_len|position_embedding_size", 512),
    (r"(sliding_window|sliding_window_size|attention_chunk_size|rel_extent)", lambda old: min(old, 64)),
    (r"num_embeddings|codebook_size", 64),
    (r"base_channels|latent_channels|audio_channels", lambda old: min(old, 32)),
]
#: Lists that name layers, or hold no entry for each layer.
INDEX_LISTS = {
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
    "global_attn_indexes": [1],
    "cross_attention_layers": [1],
    "intermediate_layers_indices": [0, 1],
    "kv_source_layers": None,
    "full_attn_idxs": None,
    "moe_layers": None,
}
CONTROL_TOKEN = re.compile(r".*(token_id|token_index|image_patch_id|im_(start|end|newline)_id)")


def _layers(config: dict[str, Any]) -> tuple[str | None, list[int]]:
    """The name of a configuration's number of layers, and the layers that stay: two, and one of every kind."""
    for name in ("num_hidden_layers", "num_layers", "depth", "n_layers", "layers"):
        count = config.get(name)
        if isinstance(count, int):
            break
    else:
        return None, []
    lists = [value for value in config.values() if isinstance(value, (list, tuple)) and len(value) == count]
    kinds: dict[Any, int] = {}
    for layer in range(count):
        kinds.setdefault(repr([values[layer] for values in lists if not _is_counter(values)]), layer)
    kept = sorted(set(list(kinds.values())[:4]))
    for layer in range(count):
        if len(kept) >= min(LAYERS, count):
            break
        kept = sorted({*kept, layer})
    return name, kept


def _is_counter(values: Any) -> bool:
    return len(set(map(repr, values))) == len(values)


def shrink(config: dict[str, Any], tokens: dict[int, int]) -> dict[str, Any]:
    """Shrink a configuration, given as a dictionary.

    Args:
        config: With the configurations of parts inside.
        tokens: New ids of control tokens by the old ones; new ones are entered.

    Returns:
        A smaller dictionary of the same form.
    """
    found: dict[str, Any] = {}
    layers_name, kept = _layers(config)
    count = config.get(layers_name) if layers_name else None
    all_heads = config.get("num_attention_heads")
    for name, value in config.items():
        if isinstance(value, dict) and name not in ("rope_parameters", "id2label", "label2id"):
            if name == "per_layer_config":
                by_layer = {int(layer): sizes for layer, sizes in value.items()}
                found[name] = {
                    at: shrink(by_layer[layer], tokens) for at, layer in enumerate(kept) if layer in by_layer
                }
            elif name in ("projector_patch_to_query_dict", "model_args"):
                found[name] = value
            else:
                found[name] = shrink(value, tokens)
        elif name == "num_key_value_heads" and value is not None and value == all_heads:
            found[name] = HEADS
        elif name in INDEX_LISTS:
            if INDEX_LISTS[name] is not None:
                found[name] = INDEX_LISTS[name]
        elif name == "eos_token_id" and value is not None:
            found[name] = 2
        elif name in ("bos_token_id", "decoder_start_token_id") and value is not None:
            found[name] = 1
        elif name == "pad_token_id":
            found[name] = 0
        elif CONTROL_TOKEN.fullmatch(name) and isinstance(value, int) and value >= 0:
            found[name] = tokens.setdefault(value, FIRST_CONTROL_TOKEN + len(tokens))
        elif isinstance(value, (list, tuple)) and count and len(value) == count:
            found[name] = [_size(name, value[layer], kept) for layer in kept]
        else:
            found[name] = _size(name, value, kept)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        found["rope_parameters"] = _rope(rope)
    return {name: value for name, value in found.items() if value is not _DROP}


_DROP = object()


def _size(name: str, value: Any, kept: list[int]) -> Any:
    if name == "initializer_range":
        return max(value, 0.02)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    for pattern, new in RULES:
        if re.fullmatch(pattern, name):
            if new == "drop":
                return _DROP
            if new == "layers":
                return min(value, 1 if name == "first_k_dense_replace" else len(kept) or LAYERS)
            if new == "image":
                return IMAGE
            if new == "patch":
                return PATCH if value >= 4 else value
            return new(value) if callable(new) else (new if value else value)
    return value


def _rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Parts of the rotary positions add up to half of a head's width."""
    found = {key: _rope(value) if isinstance(value, dict) else value for key, value in rope.items()}
    if "partial_rotary_factor" in found and found["partial_rotary_factor"] < 0.5:
        found["partial_rotary_factor"] = 0.5
    if "mrope_section" in found:
        half = int(HEAD_WIDTH * found.get("partial_rotary_factor", 1.0)) // 2
        parts = len(found["mrope_section"])
        found["mrope_section"] = [half - (parts - 1) * (half // parts), *[half // parts] * (parts - 1)]
    return found


def _letters(number: int) -> str:
    """A code of Chameleon's pictures as its vocabulary spells it: A for 0, B for 1, ..."""
    return "".join(chr(ord("A") + int(digit)) for digit in str(number))


MROPE = {"text_config": {"rope_parameters": {"mrope_section": [4, 2, 2]}}}
TILES = [[32, 64], [64, 32]]
PINPOINTS = {"image_grid_pinpoints": TILES}
MINICPM = {"image_token_id": 8, "video_token_id": 9, "insert_layer_id": 0}
AUDIO3N = {
    "vocab_size": 16,
    "vocab_offset": 624,
    "input_feat_size": 16,
    "conf_num_attention_heads": 4,
    "conf_num_hidden_layers": 1,
    "sscp_conv_channel_size": [8, 4],
}
OMNI = {"vision_start_token_id": 40, "vision_end_token_id": 41}
#: Layers that take keys and values from another one below, as the released small models have them.
GEMMA4_TEXT = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}},
}
#: What a name does not tell, by type; parts are merged.
OVERRIDES: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "image_token_offset": 300,
        "audio_token_offset": 364,
        "audio_config": {"codebook_dim": WIDTH},
    },
    "aria": {"projector_patch_to_query_dict": {16: 4}, "max_value_projector_patch_to_query_dict": 4},
    "blip-2": {"image_token_index": 8},
    "fast_vlm": {"vision_config": {"model_args": None}},
    "fuyu": {"patch_size": PATCH},
    "gemma3n": {
        "text_config": {
            "num_hidden_layers": 4,
            "intermediate_size": INNER,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
            "vocab_size_per_layer_input": 600,
        },
        "vision_config": {"vocab_size": 16, "vocab_offset": 608, "model_args": None},
        "audio_config": AUDIO3N,
        "vision_soft_tokens_per_image": 16,
    },
    "perception_lm": {"vision_config": {"model_args": {"embed_dim": WIDTH, "tokens": True}}},
    "idefics": {"alpha_initializer": "ones"},
    "mllama": {"vision_config": {"vision_output_dim": 3 * WIDTH}},
    "gemma3": {"mm_tokens_per_image": 4},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "t5gemma2": {"encoder": {"mm_tokens_per_image": 4}},
    "gemma4": {
        "text_config": GEMMA4_TEXT,
        "vision_config": {
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": HEAD_WIDTH,
            "patch_size": PATCH,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
    },
    "gemma4_unified": {
        "text_config": GEMMA4_TEXT,
        "vision_config": {
            "patch_size": PATCH,
            "pooling_kernel_size": 2,
            "mm_embed_dim": WIDTH,
            "mm_posemb_size": 16,
            "output_proj_dims": WIDTH,
        },
    },
    "glm46v": MROPE,
    "glm4v": MROPE,
    "glm4v_moe": {"text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}}},
    "glm_ocr": MROPE,
    "glmga": MROPE,
    "paddleocr_vl": MROPE,
    "qwen2_vl": MROPE,
    "qwen2_5_vl": MROPE,
    "instructblip": {"image_token_index": 8},
    "instructblipvideo": {"video_token_index": 8},
    "kosmos-2.5": {"vision_config": {"patch_embed_hidden_size": 3 * PATCH**2}},
    "llava_next": PINPOINTS,
    "llava_next_video": PINPOINTS,
    "llava_onevision": PINPOINTS,
    "llama4": {"vision_config": {"intermediate_size": 4 * WIDTH}},
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), MINICPM),
    "mistral4": {"head_dim": 2 * HEAD_WIDTH},
    "muse_glimmer": {"out_hidden_size": 4 * WIDTH},
    "qwen2_5_omni_thinker": {**OMNI, **MROPE},
    "qwen3_omni_moe_thinker": OMNI,
    "step3p7": {"text_config": {"sliding_window": 8}},
    "vipllava": {"vision_feature_layer": [-2, -1]},
    "chameleon": {
        "vocabulary_map": {"<image>": 8, **{f"IMGIMG{_letters(code)}Z": 300 + code for code in range(64)}},
        "vq_config": {"embed_dim": 8, "resolution": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1},
    },
    "cohere_compass": {
        "text_config": {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
            }
        }
    },
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
        "vision_config": {"sam_config": {"downsample_channels": [32, 64]}},
    },
    "unlimited_ocr": {"vision_config": {"sam_config": {"downsample_channels": [32, 64]}}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "dots3_note": {"text_config": {"head_dim": 2 * HEAD_WIDTH}, "audio_config": {"adapter_input_size": WIDTH}},
    "emu3": {
        "vocabulary_map": {
            "<image>": 8,
            "<|extra_200|>": 9,
            **{f"<|visual token {code:06d}|>": 300 + code for code in range(64)},
        },
        "vq_config": {
            "embed_dim": 4,
            "hidden_size": 32,
            "num_attention_heads": 1,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
        },
    },
    "ernie4_5_vl_moe": {
        "text_config": {"moe_intermediate_size": [48, 32], "rope_parameters": {"mrope_section": [3, 3, 2]}}
    },
    "florence2": {
        "vision_config": {
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [32, 64],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "window_size": 4,
        }
    },
    "granite4_vision": {
        "image_grid_pinpoints": TILES,
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[1, 0]],
        "spatial_target_layers": [1],
    },
    "hunyuan_vl": {
        "text_config": {"head_dim": HEAD_WIDTH, "rope_parameters": {"mrope_section": [2, 2, 2, 2]}},
        "vision_config": {"max_image_size": 64},
    },
    "inkling_mm_model": {"audio_config": {"mel_vocab_size": 16, "n_mel_bins": 4}},
    "janus": {
        "vision_config": {"num_image_tokens": 16, "depth": 1},
        "vq_config": {"embed_dim": 8, "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 4},
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_spark": {
        "out_hidden_size": 4 * WIDTH,
        "audio_config": {"num_hidden_layers": 2, "patch_sizes": [16, 6], "hidden_sizes": [8, 8], "depths": [1, 1]},
    },
    "nemotron_h_omni": {
        "text_config": {"n_groups": 2},
        "image_token_id": 8,
        "video_token_id": 9,
        "audio_token_id": 10,
        "vision_config": {"max_img_size": 64, "patch_dim": 192, "video_patch_dim": 384},
    },
    "pp_formulanet": {
        "vision_config": {"post_conv_in_channels": 64, "post_conv_mid_channels": 64, "post_conv_out_channels": 64}
    },
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        }
    },
}


def merge(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge changes into a nested dictionary; None stays None, `...` takes an entry out."""
    merged = dict(config)
    for name, value in changes.items():
        if value is ...:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Shrink the default configuration of a type."""
    config_class = CONFIG_MAPPING[model_type]
    tokens: dict[int, int] = {}
    small = shrink(config_class().to_dict(), tokens)
    small = merge(small, OVERRIDES.get(model_type, {}))
    for name in ("dtype", "transformers_version", "architectures"):
        small.pop(name, None)
    return config_class(**small)


def tiny_model(model_type: str, config: PreTrainedConfig | None = None, seed: int = 0) -> PreTrainedModel:
    """Build a tiny random model of a type, in evaluation mode, whose weights matter."""
    config = config or tiny_config(model_type)
    torch.manual_seed(seed)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]._from_config(config)
    model.generation_config = GenerationConfig(max_new_tokens=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(seed)
    with torch.no_grad():  # random weights of 0.02 make nearly equal states: nothing would depend on anything
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():  # some start at zero and are always trained
                parameter.normal_(std=0.02)
            if parameter.ndim > 1:
                parameter.mul_(4)
            if parameter.numel() == 1 and not parameter.any():  # a gate that starts shut
                parameter.fill_(0.5)
    return model.eval()
