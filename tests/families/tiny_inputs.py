"""Inputs of tiny models of any type, made of the configuration alone: token ids with places for pictures, pictures.

Two samples, `text, picture, text`, of the same length. What a model wants beside `pixel_values` follows from the
arguments of its `forward`; the few types that follow no such custom stand by name in `BY_HAND`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from shrinker import IMAGE, PATCH
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

BEFORE, AFTER = (101, 102, 103), (104, 105, 106, 107)  # tokens of the two texts
SAMPLES = 2


@dataclass
class TinyInputs:
    """Inputs of a model, and where its slices lie.

    Attributes:
        inputs: What the backbone takes.
        other_picture: The same with another picture in the first sample.
        slice_map: (B, L) int64: 1 at the first text's last token, 2 at a picture's tokens, 3 at the last token. All
            of the picture's places are empty where a type has none.
        picture_inputs: Names of the inputs that come with a picture.
    """

    inputs: dict[str, Any]
    other_picture: dict[str, Any]
    slice_map: Tensor
    picture_inputs: tuple[str, ...]

    @property
    def labels(self) -> Tensor:
        """(B, L) labels at the last text's tokens."""
        labels = torch.full_like(self.inputs["input_ids"], -100)
        labels[:, -len(AFTER) :] = self.inputs["input_ids"][:, -len(AFTER) :]
        return labels

    def without_picture(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs without those that come with a picture."""
        return {name: value for name, value in inputs.items() if name not in self.picture_inputs}

    def upto(self, end: int) -> dict[str, Any]:
        """The inputs without what comes after a place."""
        length = self.inputs["input_ids"].shape[1]
        found = {}
        for name, value in self.inputs.items():
            by_token = isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == (SAMPLES, length)
            found[name] = value[:, :end] if by_token else value
        return found


class Draw:
    """Noise for the pictures, of a seed for each sample."""

    def __init__(self, *seeds: int) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, *shape: int, dim: int = 0) -> Tensor:
        """Noise of a shape for each sample, one after the other along a dimension."""
        return torch.cat([torch.randn(shape, generator=generator) for generator in self.generators], dim)


def _first(config: Any, *names: str, default: Any = None) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), default)


def _side(config: PreTrainedConfig) -> int:
    size = _first(
        _first(config, "vision_config", "vq_config", default=config), "image_size", "resolution", default=IMAGE
    )
    return size if isinstance(size, int) else size[0]


def _plain(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    return {"pixel_values": draw(1, 3, _side(config), _side(config))}


def _sized(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    return {**_plain(config, draw), "image_sizes": torch.tensor([[_side(config)] * 2] * SAMPLES)}


def _grid(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    vision = config.vision_config
    merge = _first(vision, "spatial_merge_size", "merge_size", default=2)
    channels = _first(vision, "in_channels", "num_channels", default=3)
    frames = _first(vision, "temporal_patch_size", "patch_temporal", default=1)
    rows = 2 * merge
    return {
        "pixel_values": draw(rows * rows, channels * frames * vision.patch_size**2),
        "image_grid_thw": torch.tensor([[1, rows, rows]] * SAMPLES),
    }


def _tiled(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    size = _side(config)  # the whole and two tiles
    return {"pixel_values": draw(1, 3, 3, size, size), "image_sizes": torch.tensor([[size, 2 * size]] * SAMPLES)}


def _several(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    return {"pixel_values": draw(1, 1, 3, _side(config), _side(config))}


def _placed(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    columns, rows = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy")
    places = torch.stack([columns.flatten(), rows.flatten()], -1)
    width = 3 * PATCH**2 * (4 if config.model_type == "gemma4_unified" else 1)
    return {"pixel_values": draw(1, 16, width), "image_position_ids": torch.stack([places] * SAMPLES)}


def _with_question(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    question = torch.tensor([[101, 102, 103]] * SAMPLES)
    mask = torch.ones_like(question)
    return {**_plain(config, draw), "qformer_input_ids": question, "qformer_attention_mask": mask}


def _packed(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    pixels = draw(1, 3, PATCH, 16 * PATCH, dim=3)
    return {"pixel_values": pixels, "target_sizes": torch.tensor([[4, 4]] * SAMPLES)}


def _mllama(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    tiles = config.vision_config.max_num_tiles
    return {
        "pixel_values": draw(1, 1, tiles, 3, _side(config), _side(config)),
        "aspect_ratio_ids": torch.ones(SAMPLES, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(SAMPLES, 1, tiles, dtype=torch.long),
    }


def _molmo2(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    pooled = torch.arange(SAMPLES * 16).view(SAMPLES * 4, 4)
    return {
        "pixel_values": draw(1, 16, 3 * PATCH**2),
        "image_token_pooling": pooled,
        "image_grids": torch.tensor([[2, 2, 0, 0]] * SAMPLES),
        "image_num_crops": torch.ones(SAMPLES, dtype=torch.long),
    }


def _inkling2(config: PreTrainedConfig, draw: Draw) -> dict[str, Any]:
    return {"pixel_values": draw(4, 2 * PATCH, 2 * PATCH, 3), "image_grid_thw": torch.tensor([[1, 2, 2]] * SAMPLES)}


BY_HAND: dict[str, Callable[[PreTrainedConfig, Draw], dict[str, Any]]] = {
    **dict.fromkeys(("idefics", "idefics2", "idefics3", "smolvlm", "perception_lm"), _several),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision", "granite4_vision"), _tiled),
    **dict.fromkeys(("apertus1p5", "emu3", "cohere2_vision", "lighton_ocr", "mistral3", "mistral_large4"), _sized),
    **dict.fromkeys(("gemma4", "gemma4_unified"), _placed),
    **dict.fromkeys(("instructblip",), _with_question),
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), _packed),
    "mllama": _mllama,
    "molmo2": _molmo2,
    "mistral4": lambda config, draw: {},
    "evolla": lambda config, draw: {},
    "diffusion_gemma": lambda config, draw: {},
    "granite_docling": lambda config, draw: {
        **_several(config, draw),
        "pixel_attention_mask": torch.ones(SAMPLES, 1, dtype=torch.bool),
    },
    "deepseek_vl_hybrid": lambda config, draw: {
        **_plain(config, draw),
        "high_res_pixel_values": draw(
            1, 3, config.high_res_vision_config.image_size, config.high_res_vision_config.image_size
        ),
    },
    "fuyu": lambda config, draw: {"image_patches": draw(1, 4, 3 * config.patch_size**2)},
    **dict.fromkeys(("inkling2", "inkling2_loop"), _inkling2),
    "inkling_mm_model": lambda config, draw: {
        "pixel_values": draw(
            4,
            config.vision_config.temporal_patch_size,
            config.vision_config.patch_size,
            config.vision_config.patch_size,
            3,
        )
    },
    "kimi_k25": lambda config, draw: {
        "pixel_values": draw(16, 3, PATCH, PATCH),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * SAMPLES),
    },
    "lfm2_vl": lambda config, draw: {
        "pixel_values": draw(1, 16, 3 * PATCH**2),
        "spatial_shapes": torch.tensor([[4, 4]] * SAMPLES),
        "pixel_attention_mask": torch.ones(SAMPLES, 16, dtype=torch.long),
    },
    "nemotron_h_omni": lambda config, draw: {
        "pixel_values": draw(16, 3 * PATCH**2),
        "image_grid_hw": torch.tensor([[4, 4]] * SAMPLES),
    },
    "paddleocr_vl": lambda config, draw: {
        "pixel_values": draw(16, 3, PATCH, PATCH),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * SAMPLES),
    },
    "instructblipvideo": lambda config, draw: {**_with_question(config, draw), **_several(config, draw)},
    "video_llama_3": lambda config, draw: {**_grid(config, draw), "image_merge_sizes": torch.tensor([2] * SAMPLES)},
    "kosmos-2.5": lambda config, draw: {
        "flattened_patches": torch.nn.functional.pad(draw(1, 16, 3 * PATCH**2), (2, 0), value=1.0),
        "width": torch.tensor([1.0] * SAMPLES),
        "height": torch.tensor([1.0] * SAMPLES),
    },
    "video_llava": lambda config, draw: {"pixel_values_images": draw(1, 3, _side(config), _side(config))},
}


def pictures(config: PreTrainedConfig, arguments: set[str], draw: Draw) -> dict[str, Any]:
    """Make one picture for each sample, as the image processor would."""
    default = _grid if "image_grid_thw" in arguments else _plain
    return BY_HAND.get(config.model_type, default)(config, draw)


def image_token(config: PreTrainedConfig) -> int | None:
    """The id that stands for a picture's place, None where there is none."""
    if config.model_type in ("idefics", "kosmos-2", "kosmos-2.5"):  # their processors know it
        return 8
    if config.model_type == "instructblipvideo":  # every picture is a film
        return config.video_token_index
    value = _first(config, "image_token_id", "image_token_index", "image_patch_id")
    if value is None and _first(config, "vocabulary_map"):
        return config.vocabulary_map["<image>"]
    return value


def count_features(model: PreTrainedModel, picture: dict[str, Any]) -> int:
    """How many states a picture becomes, asked of the model."""
    owner = model if hasattr(model, "get_image_features") else model.base_model
    names = inspect.signature(owner.get_image_features).parameters
    if not names.keys() & {"pixel_values", "image_merge_sizes"} or "image_merge_sizes" in picture:  # it hands them on
        owner = model.base_model
        names = inspect.signature(owner.get_image_features).parameters
    given = {name: value for name, value in picture.items() if name in names}
    for old in ("image_patches", "pixel_values_images"):
        if old in picture:
            given["pixel_values"] = picture[old]
    with torch.no_grad():
        found = owner.get_image_features(**given, return_dict=True)
    features = _first(found, "pooler_output", "last_hidden_state", default=found)
    if features is found:  # features for several layers, of which each has a list of pictures
        features = found.deepstack_features[0][1]
    if isinstance(features, (list, tuple)):
        return sum(feature.numel() // feature.shape[-1] for feature in features) // SAMPLES
    return features.numel() // features.shape[-1] // SAMPLES


#: Tokens of a picture where the model cannot be asked.
COUNTS = {
    "blip-2": 4,
    "instructblip": 4,
    "instructblipvideo": 4,
    "mllama": 1,
    "idefics": 1,
    "kosmos-2": 4,
    "kosmos-2.5": 4,
}


def tiny_inputs(model: PreTrainedModel) -> TinyInputs:
    """Make inputs for a tiny model: two samples of text, picture, text."""
    config = model.config
    arguments = set(inspect.signature(type(model).forward).parameters)
    picture, other = (pictures(config, arguments, Draw(seed, 1)) for seed in (0, 2))
    token = image_token(config)
    count = 0
    if picture and token is not None:
        count = COUNTS.get(config.model_type) or count_features(model, picture)
    ids = torch.tensor([[*BEFORE, *[token] * count, *AFTER], [*(i + 20 for i in BEFORE), *[token] * count, *AFTER]])
    is_image = ids == token if token is not None else torch.zeros_like(ids, dtype=torch.bool)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if name in arguments:
            found[name] = is_image.long()
    if config.model_type == "paligemma":  # there it tells the prompt from the answer
        found["token_type_ids"] = torch.zeros_like(ids)
        found["token_type_ids"][:, -len(AFTER) :] = 1
    if config.model_type == "mllama":
        seen = (is_image.cumsum(1) > 0).long()[:, :, None, None]
        found["cross_attention_mask"] = seen.expand(-1, -1, 1, config.vision_config.max_num_tiles)
    if "image_embeds_position_mask" in arguments:
        found["image_embeds_position_mask"] = is_image.long()
    if config.model_type == "idefics":
        found["image_attention_mask"] = (is_image.cumsum(1) > 0).long()[:, :, None]
    slices = is_image.long() * 2
    slices[:, len(BEFORE) - 1], slices[:, -1] = 1, 3
    beside = {"cross_attention_mask", "image_attention_mask", "image_embeds_position_mask"} & found.keys()
    return TinyInputs({**found, **picture}, {**found, **other}, slices, (*picture, *beside))
