"""What the tiny models are made of: pictures, a tokenizer, chat templates, sizes."""

import functools

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

CORPUS = [
    "A cat sits on the red mat. A dog runs after two yellow balls.",
    "USER: What is in the picture? ASSISTANT: Three green apples and a house.",
    "The sun rises behind the mountain, then a bird flies over the blue lake!",
] * 4

# As in LLaVA-1.5: the images of a message come before its text.
VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}"
    "{% else %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# As in Idefics 3: in order, and the space after the role depends on what comes first.
IDEFICS_TEMPLATE = (
    "<s>{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# As in Qwen2-VL: strings or parts, control tokens around images and turns, no bos.
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As in Gemma 3: the first system message is put before the user's text.
GEMMA_TEMPLATE = (
    "<s>{% if messages[0]['role'] == 'system' %}"
    "{% if messages[0]['content'] is string %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% else %}{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ first if loop.first else '' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# PaliGemma has none. Images, a line of text, the answer: as it was trained.
PALIGEMMA_TEMPLATE = (
    "{% for message in messages %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
)


def picture(seed: int = 0, width: int = 40, height: int = 32) -> Image.Image:
    """Return an RGB picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@functools.cache
def _bpe(special: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    # GPT-4's way of splitting, in which punctuation takes the line break after it along (".\n" may be one token)
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet)
    corpus = CORPUS + [line.replace(". ", ".\n") for line in CORPUS]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer.to_str()


def build_tokenizer(special: tuple[str, ...], bos: bool = True, **names: str | None) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer; with `bos`, it puts `<s>` in front as Llama's does.

    `names` are names of tokens: those that every tokenizer has, and those that a processor asks its tokenizer for.
    """
    tokenizer = Tokenizer.from_str(_bpe(("<pad>", "<s>", "</s>", *special)))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=names.pop("bos_token", "<s>" if bos else None),
        eos_token=names.pop("eos_token", "</s>"),
        pad_token="<pad>",
        padding_side="left",
        model_max_length=2048,
        additional_special_tokens=list(special),
        **names,
    )


def text_config(tokenizer: PreTrainedTokenizerFast) -> dict:
    """Return the sizes of a tiny language model; the width is 32."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def vision_config(**sizes: int) -> dict:
    """Return the sizes of a tiny vision tower; `image_size` and `patch_size` have no default."""
    return {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **sizes,
    }


def finish(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Make the weights matter and generation short."""
    model.generation_config = GenerationConfig(
        max_new_tokens=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.no_grad():  # random weights of 0.02 make nearly equal states: nothing would depend on anything
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():  # some start at zero and are always trained
                parameter.normal_(std=0.02)
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()
