"""How a text encoder makes one vector of a text: what its sentence-transformers folder says, or its CLS vector."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

POOLINGS = ("cls", "mean", "max", "lasttoken")
MODULES = {"Transformer", "Pooling", "Normalize"}
# As folders of older versions name the poolings.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
CASES = "Ab ÇÉ Ω İstanbul"


@dataclass(frozen=True)
class TextPooling:
    """From a text to its vector.

    Args:
        mode: `"cls"`, the state of the first token; `"mean"` or `"max"` over all; `"lasttoken"`.
        prompt: Text in front of every text.
        lower_case: Whether texts are put into lower case first.
        longest: The most tokens of a text, where this is less than the model takes.
        subfolder: Where the model lies in its folder.
    """

    mode: str = "cls"
    prompt: str = ""
    lower_case: bool = False
    longest: int | None = None
    subfolder: str = ""

    def __post_init__(self) -> None:
        if self.mode not in POOLINGS:
            raise ValueError(f"The pooling {self.mode!r} is not supported: there are {', '.join(POOLINGS)}.")

    def text(self, text: str) -> str:
        """What is tokenised of a text."""
        text = self.prompt + text
        return text.lower() if self.lower_case else text

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """One vector for each text.

        Shape:
            states (B, L, H), mask (B, L) with 1 at real tokens, padded on either side; returns (B, H) in float32.
        """
        states, real = states.float(), mask.bool()
        rows = torch.arange(len(states), device=states.device)
        if self.mode == "cls":
            return states[rows, real.int().argmax(dim=1)]
        if self.mode == "lasttoken":
            return states[rows, real.shape[1] - 1 - real.int().flip(1).argmax(dim=1)]
        real = real.unsqueeze(-1)  # (B, L, 1)
        if self.mode == "max":
            return states.masked_fill(~real, -torch.inf).amax(dim=1)
        return states.masked_fill(~real, 0).sum(dim=1) / real.sum(dim=1).clamp(min=1)

    def settings(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What of it changes the vectors; nothing for a plain CLS vector, so that a fingerprint of one stays."""
        plain = TextPooling()
        found = {name: value for name, value in asdict(self).items() if value != getattr(plain, name)}
        found.pop("subfolder", None)
        if self.lower_case and tokenizer(CASES)["input_ids"] == tokenizer(CASES.lower())["input_ids"]:
            del found["lower_case"]
        if self.longest is not None and self.longest >= most_tokens(model, tokenizer):
            del found["longest"]
        return found


def most_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens of a text that a text encoder takes."""
    limits = [tokenizer.model_max_length]
    tables = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding)
    ]
    for table in tables:  # RoBERTa and its kin begin to count behind the padding token
        limits.append(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))
    declared = model.config.to_dict().get("max_position_embeddings")
    if not tables and declared is not None:
        limits.append(declared)
    return min(limits)


def read_pooling(name: str, pooling: str | None = None) -> TextPooling:
    """The pooling of a text encoder's folder or repository.

    Args:
        name: Folder, or name on the Hub.
        pooling: The pooling to use, whatever the folder says.

    Returns:
        What its sentence-transformers files say; the CLS vector if it has none, as BERT-type encoders are read.

    Raises:
        ValueError: The folder asks for something that is not supported (other modules or poolings, a prompt that is
            left out of the pooling), or nobody can be asked what it says.
    """
    if pooling is not None:
        return TextPooling(pooling)
    modules = _read(name, "modules.json")
    if modules is None:
        return TextPooling()
    parts = {str(module["type"]).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    if other := [kind for kind in parts if kind not in MODULES]:
        raise ValueError(
            f"The text teacher {name!r} has the modules {', '.join(other)} of sentence-transformers, which are not "
            f"supported: take an encoder of {', '.join(sorted(MODULES))}, or give text_pooling to leave them out."
        )
    if "Pooling" not in parts:
        raise ValueError(f"The modules.json of the text teacher {name!r} has no Pooling: give text_pooling.")
    settings = _read(name, f"{parts['Pooling']}/config.json") or {}
    mode = settings.get("pooling_mode", [kind for flag, kind in FLAGS.items() if settings.get(flag)])
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f"The text teacher {name!r} pools by {' and '.join(modes) or 'nothing'}, which is not supported: there "
            f"are {', '.join(POOLINGS)}. Take another encoder, or give text_pooling."
        )
    folder = parts.get("Transformer", "")
    transformer = _read(name, f"{folder}/sentence_bert_config.json".lstrip("/")) or {}
    prompts = _read(name, "config_sentence_transformers.json") or {}
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
    if prompt and settings.get("include_prompt") is False:
        raise ValueError(
            f"The text teacher {name!r} leaves the tokens of its prompt {prompt!r} out of the pooling, which is not "
            "supported. Take another encoder, or give text_pooling to embed without the prompt."
        )
    return TextPooling(
        mode=modes[0],
        prompt=prompt,
        lower_case=bool(transformer.get("do_lower_case")),
        longest=transformer.get("max_seq_length"),
        subfolder=folder,
    )


def _read(name: str, file: str) -> Any:
    """The JSON in a file of a folder or repository; None if it has no such file."""
    path: Path | None = None
    if Path(name).is_dir():
        path = Path(name, file)
        path = path if path.is_file() else None
    else:
        try:
            path = Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"Whether the text teacher {name!r} has a {file}, which says how it pools, cannot be found out: the "
                'Hub is not reached, and the file is not in the cache. Give text_pooling ("cls" for the paper\'s).'
            ) from error
        except EntryNotFoundError:
            path = None
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} of the text teacher cannot be read ({error}). Download it again.") from error
