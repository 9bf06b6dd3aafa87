"""The tokenizer of all mini models: byte-level BPE over the picturebook's sentences, so that any text can be read."""

import random
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.scenes import caption, draw_scene, questions
from sugar_hf.picturebook.stories import draw_process, draw_story

PAD, BOS, IMAGE, EOS = "<pad>", "<s>", "<image>", "</s>"
VOCABULARY_SIZE = 1400
# Vicuna's form without its system message, the one LLaVA-1.5 uses
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }} "
    "{% else %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def corpus(size: int = 20_000, seed: int = 0) -> list[str]:
    """Sentences of every kind, drawn without regard to splits: a vocabulary gives no answer away."""
    rng = random.Random(seed)
    lines = [f"there is a {name}." for name in CONCEPTS for _ in range(20)]
    for _ in range(size // 10):
        scene = draw_scene(rng)
        lines += [caption(scene, rng, detail) for detail in ("full", "brief", "some")]
        lines += [f"USER: {question} ASSISTANT: {answer}" for _, question, answer in questions(scene, rng)]
        lines += draw_story(rng, "train").sentences + draw_process(rng, "train").sentences
    return lines


@lru_cache(maxsize=1)
def train_bpe() -> str:
    """The trained byte-level BPE, as the JSON of a `tokenizers.Tokenizer`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BOS, IMAGE, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer.to_str()


def build_tokenizer(add_eos: bool) -> PreTrainedTokenizerFast:
    """The tokenizer in its model's form. `add_eos` puts `</s>` at the end, as CLIP's and BERT's encoders want it."""
    tokenizer = Tokenizer.from_str(train_bpe())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}" if add_eos else f"{BOS} $A",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS)), (EOS, tokenizer.token_to_id(EOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        cls_token=BOS if add_eos else None,
        sep_token=EOS if add_eos else None,
        extra_special_tokens={} if add_eos else {"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
    )
