"""Tiny processors of any type that transformers maps to image-text-to-text, and what they can be given.

A processor's class says by its source which control tokens it asks its tokenizer for; a tokenizer of a few hundred
tokens gets them, at the ids that the model's configuration names. Image processors are brought down by the names of
their sizes. What a name does not tell stands in `IMAGE_SETTINGS` and `SETTINGS`.
"""

import inspect
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from builders.parts import build_tokenizer, picture
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from sugar_hf.model import SugarProcessor
from sugar_hf.model.processing_sugar import without_video
from sugar_hf.model.samples_sugar import ControlTokens

#: Types that transformers maps to no processor; the folders of their models name one of these.
OTHER_CLASSES = {
    "fast_vlm": "LlavaProcessor",
    "glm_ocr": "Glm46VProcessor",
    "glmga": "Glm46VProcessor",
    "kosmos-2": "Kosmos2Processor",
    "kosmos-2.5": "Kosmos2_5Processor",
    "qwen2_5_omni_thinker": "Qwen2_5OmniProcessor",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeProcessor",
}
#: The same for image processors, by the processor's class.
OTHER_IMAGE_PROCESSORS = {
    "Gemma4Processor": "Gemma4ImageProcessor",
    "Glm46VProcessor": "Glm46VImageProcessor",
    "Glm4vProcessor": "Glm4vImageProcessor",
    "LlavaProcessor": "LlavaImageProcessor",
    "Qwen2_5OmniProcessor": "Qwen2VLImageProcessor",
    "Qwen3OmniMoeProcessor": "Qwen2VLImageProcessor",
    "Qwen3VLProcessor": "Qwen2VLImageProcessor",
}
FEATURE_EXTRACTORS = {
    "Gemma3nProcessor": "Gemma3nAudioFeatureExtractor",
    "Gemma4Processor": "Gemma4AudioFeatureExtractor",
    "Gemma4UnifiedProcessor": "Gemma4UnifiedAudioFeatureExtractor",
    "Qwen2_5OmniProcessor": "WhisperFeatureExtractor",
    "Qwen3OmniMoeProcessor": "WhisperFeatureExtractor",
    "Dots3NoteProcessor": "WhisperFeatureExtractor",
    "NemotronH_Omni_Reasoning_V3Processor": "WhisperFeatureExtractor",
}
#: What the names of sizes do not tell: settings of the image processor and of the processor, by its class.
IMAGE_SETTINGS: dict[str, Callable[["Sizes"], dict[str, Any]]] = {
    "Idefics2Processor": lambda s: {"size": {"shortest_edge": 32, "longest_edge": 64}, "do_image_splitting": False},
    "Idefics3Processor": lambda s: {
        "size": {"longest_edge": 2 * s.image},
        "max_image_size": {"longest_edge": s.image},
    },
    "SmolVLMProcessor": lambda s: {"size": {"longest_edge": 2 * s.image}, "max_image_size": {"longest_edge": s.image}},
    "Molmo2Processor": lambda s: {"size": {"height": 12 * s.patch, "width": 12 * s.patch}},
    "PerceptionLMProcessor": lambda s: {
        "tile_size": s.image,
        "max_num_tiles": 4,
        "size": {"height": s.image, "width": s.image},
    },
}
SETTINGS: dict[str, Callable[["Sizes"], dict[str, Any]]] = {
    **dict.fromkeys(
        (
            "LlavaProcessor",
            "LlavaNextProcessor",
            "LlavaNextVideoProcessor",
            "VideoLlavaProcessor",
            "Granite4VisionProcessor",
        ),
        lambda s: {
            "patch_size": s.patch,
            "vision_feature_select_strategy": s.whole.get("vision_feature_select_strategy", "default"),
            "num_additional_image_tokens": 1,
        },
    ),
    "LlavaOnevisionProcessor": lambda s: {
        "num_image_tokens": s.patches,
        "vision_feature_select_strategy": s.whole.get("vision_feature_select_strategy", "full"),
    },
    "Blip2Processor": lambda s: {"num_query_tokens": s.whole["num_query_tokens"]},
    "InstructBlipProcessor": lambda s: {"num_query_tokens": s.whole["num_query_tokens"]},
    "PerceptionLMProcessor": lambda s: {
        "patch_size": s.patch,
        "pooling_ratio": s.whole.get("projector_pooling_ratio", 2),
    },
}
#: Processors that ask the image processor how many tokens an image has.
ASK_IMAGE_PROCESSOR = ("PaliGemmaProcessor", "Florence2Processor")
TOKENS = 120  # the ids of control tokens lie below


class NotBuilt(Exception):  # noqa: N818
    """A tiny processor of this type cannot be built, for the reason given."""


class Sizes:
    """The sizes of a configuration's vision tower, with small numbers where it has none."""

    def __init__(self, config: PreTrainedConfig) -> None:
        whole = config.to_dict()
        vision = whole.get("vision_config") or whole.get("vlm_config", {}).get("vision_config") or {}
        self.whole, self.vision = whole, vision
        self.patch = _number(vision.get("patch_size"), 8)
        self.image = _number(vision.get("image_size"), 4 * self.patch)
        self.merge = _number(
            vision.get("spatial_merge_size", vision.get("merge_size", whole.get("spatial_merge_size"))), 2
        )
        self.patches = (self.image // self.patch) ** 2
        self.temporal = _number(vision.get("temporal_patch_size"), 1)


def _number(value: Any, default: int) -> int:
    value = value[0] if isinstance(value, list | tuple) and value else value
    return value if isinstance(value, int) and value > 0 else default


def processor_class(model_type: str, config: PreTrainedConfig) -> type[ProcessorMixin]:
    """Return the class of a type's processor."""
    if model_type in OTHER_CLASSES:
        found = getattr(transformers, OTHER_CLASSES[model_type])
    elif type(config) in PROCESSOR_MAPPING:
        found = PROCESSOR_MAPPING[type(config)]
    else:
        raise NotBuilt("transformers has no processor for it")
    try:
        found.get_attributes()
    except ImportError as error:
        raise NotBuilt(_first_line(error)) from error
    return found


def _nothing(sizes: Sizes) -> dict[str, Any]:
    return {}


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _wanted_tokens(found: type[ProcessorMixin]) -> tuple[dict[str, str], list[str]]:
    """Read from a class which tokens its tokenizer has to name (role to token), and which others it writes."""
    source = "\n".join(
        inspect.getsource(sys.modules[base.__module__])
        for base in found.__mro__
        if base.__module__.split(".")[-1].startswith("processing_") and issubclass(base, ProcessorMixin)
    )
    roles = {name.removesuffix("_id") for name in re.findall(r"tokenizer\.(\w+_token(?:_id)?)\b", source)}
    roles |= {name.removesuffix("_id") for name in re.findall(r"tokenizer, \"(\w+_token(?:_id)?)\"", source)}
    if "AddedToken(" in source:  # it adds the token itself, as one that has no name
        roles -= {"image_token", "video_token"}
    roles -= {"bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token"}
    literals = re.findall(r"[\"'](<[^\"'\s{}\\()*]{2,40}>|\|[A-Z]+\|)[\"']", source)
    defaults = dict(re.findall(r"self\.(\w+_token) = \(?\s*tokenizer\.\1 if hasattr\(.*?\) else \"([^\"]+)\"", source))
    defaults |= {
        role: token
        for token, role in re.findall(r"\"(<[^\"]+>)\" if not hasattr\(.*?\) else tokenizer\.(\w+_token)", source)
    }
    named = {role: defaults.get(role, f"<|{role.removesuffix('_token')}|>") for role in sorted(roles)}
    return named, [token for token in dict.fromkeys(literals) if token not in ("<s>", "</s>", "<pad>")]


def tiny_tokenizer(found: type[ProcessorMixin], ids: dict[str, int], own: dict[str, str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with the control tokens of a processor's class, some of them at given ids."""
    named, others = _wanted_tokens(found)
    named |= {role: own[role] for role in named.keys() & own.keys()}
    wanted = dict.fromkeys([*named.values(), *others, *own.values(), "<|im_start|>", "<|im_end|>"])
    wanted = [token for token in wanted if token not in ids and token not in ("<pad>", "<s>", "</s>")]
    by_id = {number: token for token, number in ids.items()}
    last = max([*by_id, 0])
    if last >= TOKENS or min([*by_id, 3]) < 3:
        raise NotBuilt(f"the configuration names control tokens from {min(by_id)} to {last}; {TOKENS} are to be had")
    special = []
    while wanted or 3 + len(special) <= last:
        number = 3 + len(special)
        special.append(by_id.get(number) or (wanted.pop(0) if wanted else f"<|unused_{number}|>"))
    return build_tokenizer(tuple(special), **named)


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _image_processor(found: type[ProcessorMixin], config: PreTrainedConfig, sizes: Sizes) -> Any:
    classes = []
    if type(config) in IMAGE_PROCESSOR_MAPPING:
        mapped = IMAGE_PROCESSOR_MAPPING[type(config)]
        # Pillow's first, as Sugar loads them
        classes = [mapped[backend] for backend in ("pil", "torchvision") if mapped.get(backend) is not None]
    elif found.__name__ in OTHER_IMAGE_PROCESSORS:
        classes = [getattr(transformers, f"{OTHER_IMAGE_PROCESSORS[found.__name__]}Pil")]
    for image_class in classes:
        try:
            settings = _small(image_class, sizes) | IMAGE_SETTINGS.get(found.__name__, _nothing)(sizes)
            image_processor = image_class(**settings)
        except ImportError as error:
            problem = error
            continue
        if found.__name__ in ASK_IMAGE_PROCESSOR:
            image_processor.image_seq_length = sizes.patches
        return image_processor
    if not classes:
        raise NotBuilt("transformers has no image processor for it")
    raise NotBuilt(f"its image processor needs torchvision ({_first_line(problem)[:80]})")


def _small(image_class: type, sizes: Sizes) -> dict[str, Any]:
    """Bring the default settings of an image processor down by their names."""
    small: dict[str, Any] = {}
    image, patch, unit = sizes.image, sizes.patch, sizes.patch * sizes.merge
    for name in dir(image_class):
        value = getattr(image_class, name) if not name.startswith("_") else None
        if name == "patch_size":
            small[name] = {"height": patch, "width": patch} if isinstance(value, dict) else patch
        elif name == "merge_size":
            small[name] = sizes.merge
        elif name == "temporal_patch_size":
            small[name] = sizes.temporal
        elif name in ("size", "crop_size", "max_image_size", "high_res_size") and isinstance(value, dict):
            edges = set(value)
            if "height" in edges:
                small[name] = {"height": image, "width": image}
            elif edges == {"shortest_edge", "longest_edge"}:
                small[name] = {"shortest_edge": unit * unit, "longest_edge": 16 * unit * unit}
            elif edges:
                small[name] = {edge: image if edge == "shortest_edge" else 2 * image for edge in edges}
        elif name == "image_grid_pinpoints":
            small[name] = [[image, image], [image, 2 * image], [2 * image, image]]
        elif name == "max_patches":
            small[name] = 3
    return small


def tiny_processor(model_type: str, config: PreTrainedConfig) -> ProcessorMixin:
    """Build a tiny processor whose control tokens have the ids that a configuration names.

    Args:
        model_type: A type of transformers' image-text-to-text mapping.
        config: Its configuration, with a vocabulary of at least 512 tokens: padding 0, begin 1, end 2.

    Raises:
        NotBuilt: If that cannot be done; it says why.
    """
    found = processor_class(model_type, config)
    sizes = Sizes(config)
    try:
        # twice: the first tells the tokens that the processor names itself, and which stands for an image feature
        processor = _processor(found, config, sizes, {}, {})
        own = {
            name: value
            for name, value in vars(processor).items()
            if name.endswith("_token")
            and isinstance(value, str)
            and name not in ("bos_token", "eos_token", "pad_token")
        }
        processor = _processor(found, config, sizes, {}, own)
        return _processor(found, config, sizes, _ids(processor, config), own)
    except ImportError as error:
        raise NotBuilt(_first_line(error)) from error


def _ids(processor: ProcessorMixin, config: PreTrainedConfig) -> dict[str, int]:
    """Pair the tokens of a processor with the ids that a configuration names."""
    whole, tokenizer, ids = config.to_dict(), processor.tokenizer, {}
    named = _wanted_tokens(type(processor))[0]
    for name, number in whole.items():
        role = re.sub(r"_(id|index)$", "", name)
        if not isinstance(number, int) or role == name or not role.endswith("token"):
            continue
        if role in ("bos_token", "eos_token", "pad_token", "decoder_start_token", "forced_eos_token"):
            continue
        token = None
        if role == "image_token" and isinstance(getattr(processor, "image_token_id", None), int):
            token = tokenizer.convert_ids_to_tokens(processor.image_token_id)
        token = token or getattr(processor, role, None) or named.get(role)
        if isinstance(token, str) and tokenizer.convert_tokens_to_ids(token) is not None:
            ids.setdefault(token, number)
    return ids


def _processor(
    found: type[ProcessorMixin],
    config: PreTrainedConfig,
    sizes: Sizes,
    ids: dict[str, int],
    own: dict[str, str],
) -> ProcessorMixin:
    parts: dict[str, Any] = {}
    for name in found.get_attributes():
        if name == "tokenizer" or name.endswith("_tokenizer"):
            parts[name] = tiny_tokenizer(found, ids, own)
        elif name == "image_processor":
            parts[name] = _image_processor(found, config, sizes)
        elif name == "feature_extractor":
            if found.__name__ in FEATURE_EXTRACTORS:
                parts[name] = getattr(transformers, FEATURE_EXTRACTORS[found.__name__])()
            elif type(config) in FEATURE_EXTRACTOR_MAPPING:
                parts[name] = FEATURE_EXTRACTOR_MAPPING[type(config)]()
            else:
                raise NotBuilt("transformers has no feature extractor for it")
        elif name == "video_processor":
            parts[name] = None
            if is_torchvision_available() and type(config) in VIDEO_PROCESSOR_MAPPING:
                parts[name] = VIDEO_PROCESSOR_MAPPING[type(config)]["torchvision"]()
            else:
                found = without_video(found)
    settings = SETTINGS.get(found.__name__, _nothing)(sizes)
    processor = found(**parts, **settings)
    image_token = getattr(processor, "image_placeholder_token", None) or getattr(processor, "image_token", None)
    if image_token is not None:
        written = getattr(image_token, "content", image_token)
        if found.__name__ == "HunYuanVLProcessor":
            written = f"{processor.image_start_token}{written}{processor.image_end_token}"
        processor.chat_template = TEMPLATE.replace("IMAGE", written)
    return processor


FORMS = ("text", "image", "interleaved", "adjacent images", "chat", "mixed batch")


def processor_forms(processor: ProcessorMixin) -> dict[str, str]:
    """Say for each form of sample whether a processor can be given it: "yes", or the reason in one sentence.

    A form is right if the ids are those that the backbone's own processor makes of the same string, if the image
    inputs are too, and if the slice map marks of each image as many tokens as the processor gives it alone.
    """
    one, two = picture(1, 40, 32), picture(2, 64, 32)
    sugar = SugarProcessor(processor)
    samples: dict[str, Any] = {
        "text": ["A cat sits."],
        "image": [one],
        "interleaved": ["A cat.", one, "Two dogs.", two],
        "adjacent images": [one, two, "A cat."],
        "chat": [
            {"role": "user", "content": [{"type": "image", "image": one}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ],
    }
    forms = {}
    for name in FORMS:
        try:
            if name == "mixed batch":
                _check_batch(sugar, list(samples.values()))
            else:
                _check(sugar, name, samples[name])
        except Exception as error:  # whatever it says stands in the table
            forms[name] = f"{type(error).__name__}: {_first_line(error)}"
        else:
            forms[name] = "yes"
    return forms


def _images(sample: Any) -> list[Image.Image]:
    if isinstance(sample[0], dict):
        sample = [part.get("image", part.get("text")) for message in sample for part in message["content"]]
    return [part for part in sample if isinstance(part, Image.Image)]


def _check(sugar: SugarProcessor, name: str, sample: Any) -> None:
    backbone, images = sugar.backbone_processor, _images(sample)
    features = sugar([sample])
    ids, slices = features["input_ids"][0], features["slice_map"][0].abs()
    counts = [int((sugar([[image]])["slice_map"] != 0).sum()) for image in images]
    placed = [n for n, part in enumerate(_flat(sample), start=1) if isinstance(part, Image.Image)]
    found = [int((slices == number).sum()) for number in placed]
    if name != "interleaved" and found != counts and len(images) == 1:
        raise AssertionError(f"the slice map gives the image {found} tokens, alone {counts}")
    if any(count == 0 for count in found):
        raise AssertionError(f"the slice map gives the images {found} tokens")
    if name == "chat":
        expected = backbone.apply_chat_template(sample, tokenize=True, return_dict=True, return_tensors="pt")
    else:
        placeholder = ControlTokens(backbone).placeholder.strip()
        text = "\n".join(placeholder if isinstance(part, Image.Image) else part for part in sample)
        try:
            expected = backbone(text=[text], images=[images] if images else None, return_tensors="pt")
        except ValueError:
            if images:
                raise
            return  # it refuses texts without images, and Sugar does not: there is nothing to compare
    expected_ids = torch.as_tensor(expected["input_ids"])[0]
    is_same = expected_ids.tolist() == ids.tolist()
    if name != "chat" and not is_same:  # a plain sample's tokens end where its slices do
        is_same = sugar.tokenizer.decode(expected_ids) == sugar.tokenizer.decode(ids)
    if not is_same:
        raise AssertionError("the text is not that of the backbone's own processor")
    for key in expected.keys() & features.keys() - {"input_ids", "attention_mask"}:
        of_tokens = key.endswith(("token_type_ids", "cross_attention_mask"))
        if key not in ("labels", "token_type_ids") and not (of_tokens and len(expected_ids) != len(ids)):
            _assert_equal(key, expected[key], features[key])
    if missing := (expected.keys() - features.keys() - {"labels"}):
        raise AssertionError(f"the inputs lack {', '.join(sorted(missing))}")


def _flat(sample: Any) -> list[Any]:
    if isinstance(sample[0], dict):
        return [part.get("image", part.get("text")) for message in sample for part in message["content"]]
    return list(sample)


def _assert_equal(key: str, expected: Any, found: Any) -> None:
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        same = expected.shape == found.shape and torch.equal(expected, found)
    else:
        same = repr(expected) == repr(found)
    if not same:
        raise AssertionError(f"{key} is not that of the backbone's own processor")


def _check_batch(sugar: SugarProcessor, samples: list[Any]) -> None:
    alone = [sugar([sample]) for sample in samples]
    for side in ("left", "right"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            together = sugar(samples, padding_side=side)
        for i, single in enumerate(alone):
            mask = together["attention_mask"][i].bool()
            for key in ("input_ids", "slice_map"):
                if not torch.equal(together[key][i][mask], single[key][0][single["attention_mask"][0].bool()]):
                    raise AssertionError(f"{key} of a sample are others in a batch padded on the {side}")
            if together["slice_map"][i][~mask].any():
                raise AssertionError("the slice map marks padding")
