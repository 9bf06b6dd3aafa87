"""Sugar in sentence-transformers: the files from which it loads a model, and its inputs read as samples.

The files name its own `Transformer` module alone, so that no `trust_remote_code` is needed. That module turns every
input into chat messages before the processor sees it; a text alone and a chat with one user message then look the
same, though Sugar writes the first without a chat template. What was given is therefore looked up in the call itself.
Checked with sentence-transformers 6.2; where a later version works differently, the model says that it has no slice
map.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

OUTPUT_NAME = "last_embeds"
_SETTINGS_FILE = "config_sentence_transformers.json"
_OUTPUT = {"method": "forward", "method_output_name": OUTPUT_NAME}
_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": _OUTPUT, "image": _OUTPUT, "message": {**_OUTPUT, "format": "structured"}},
        "module_output_name": "sentence_embedding",
        # It would cut token by token, and write the end of the chat template over what it has cut.
        "processing_kwargs": {"text": {"truncation": False}, "chat_template": {"restore_suffix": False}},
        # With flash attention it would otherwise join the samples to one, and lose the slice map.
        "unpad_inputs": False,
    },
    _SETTINGS_FILE: {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "requirements": {"sentence-transformers": ">=6.2"},
    },
}
_TRANSFORMER, _MODALITY = "sentence_transformers.base.modules.transformer", "sentence_transformers.base.modality"


class Call(NamedTuple):
    """A call of `Transformer.preprocess`.

    Args:
        module: The `Transformer` module.
        inputs: What it was given, in order.
    """

    module: Any
    inputs: Sequence[Any]


def write_settings(folder: str | os.PathLike) -> None:
    """Write what sentence-transformers loads a Sugar model by; it need not be installed.

    Args:
        folder: The model's folder; made if it is not there. A `config_sentence_transformers.json` that is there
            already stays: it may hold prompts, and sentence-transformers writes it before it saves the model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings in _FILES.items():
        if name != _SETTINGS_FILE or not (folder / name).exists():
            (folder / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def find_call(caller: FrameType | None) -> Call | None:
    """Find the call of sentence-transformers that a method of the processor is part of.

    Args:
        caller: The frame that has called this method.

    Returns:
        The call, or `None` if the method was called by anything else.
    """
    while caller is not None and caller.f_globals.get("__name__") == _TRANSFORMER:
        if caller.f_code.co_name == "preprocess":
            return Call(caller.f_locals["self"], caller.f_locals["inputs"])
        caller = caller.f_back
    return None


def asks_for_pairs(caller: FrameType | None) -> bool:
    """Whether sentence-transformers is asking if the chat template keeps both halves of a pair."""
    return caller is not None and caller.f_globals.get("__name__") == _MODALITY


def check_module(module: Any) -> None:
    """Refuse a `Transformer` module that would pool the tokens itself.

    Raises:
        ValueError: If the model's folder did not hold the files of [`write_settings`].
    """
    params = module.modality_config.get("message", {})
    if params.get("method_output_name") != OUTPUT_NAME or module.module_output_name != "sentence_embedding":
        raise ValueError(
            "this Sugar model was loaded by sentence-transformers without its settings, and would give no Sugar "
            "embeddings. Save model and processor once more with save_pretrained, which writes modules.json and "
            "sentence_bert_config.json, and load that folder."
        )


def read_inputs(inputs: Sequence[Any], conversations: list[list[dict[str, Any]]]) -> list[Any]:
    """Turn a batch back into samples.

    Texts, images, pairs and dicts become samples without roles, their parts in order; with a prompt, which
    sentence-transformers has put before them as a system message, the user's message of a chat. Chats stay chats.

    Args:
        inputs: B inputs as they were given.
        conversations: The messages that sentence-transformers has made of them. A chat that shares its batch with
            other inputs lies as one part in a user's message; it is taken out of it here too, in place, because the
            images are counted in this list later.

    Returns:
        B samples that [`SugarProcessor`] takes.

    Raises:
        ValueError: If a str was taken for an image.
    """
    conversations[:] = [_without_wrap(messages) for messages in conversations]
    return [_sample(*row) for row in zip(inputs, conversations, strict=True)]


def _without_wrap(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        part = content[0] if isinstance(content, list) and len(content) == 1 else None
        chat = part.get("message") if isinstance(part, dict) and part.get("type") == "message" else None
        found += chat if isinstance(chat, list) else [message]
    return found


def _sample(given: Any, messages: list[dict[str, Any]]) -> Any:
    first = given[0] if isinstance(given, list) and given else given
    if isinstance(first, dict) and "role" in first:
        return messages
    prompt = [message for message in messages if message["role"] == "system"]
    parts = [part for message in messages if message["role"] != "system" for part in message["content"]]
    for part in parts if not isinstance(given, dict) else []:
        if isinstance(part.get("image"), str):
            raise ValueError(
                f"sentence-transformers takes the text {part['image']!r:.80} for an image. Give "
                '{"text": ...} if it is a text, and a PIL image if it is none.'
            )
    return [*prompt, {"role": "user", "content": parts}] if prompt else parts


def read_options(options: dict[str, Any], longest: int) -> dict[str, Any]:
    """Turn the options of `apply_chat_template` into those of [`SugarProcessor`].

    Args:
        options: What sentence-transformers passes on, `processing_kwargs` among them.
        longest: The model's `max_seq_length`.

    Raises:
        ValueError: If there is an option for the chat template.
    """
    own = {"tokenize", "return_dict", "return_tensors", "processor_kwargs", "load_audio_from_video", "task"}
    if unknown := options.keys() - own:
        raise ValueError(
            f"Sugar embeds chats as they are: leave out the chat template's {', '.join(sorted(unknown))}."
        )
    kinds = options["processor_kwargs"]
    found = {"padding_side": "left", **kinds["common_kwargs"], **kinds["text_kwargs"]}
    found.pop("return_tensors", None)
    if found.get("padding") != "max_length":
        found.setdefault("max_length", longest)
    return {**found, "images_kwargs": kinds["images_kwargs"] or None}
