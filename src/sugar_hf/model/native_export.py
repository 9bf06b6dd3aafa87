"""Export for other engines: the backbone as what it is, and the head beside it as modules of sentence-transformers."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from safetensors.torch import save_file
from torch import nn
from transformers import MODEL_MAPPING, AutoProcessor, PreTrainedModel

from .adapters import has_adapters
from .backbone_sugar import has_body
from .checkpoint_sugar import staged
from .embedding_sugar import drawn_picture
from .hub import drop_folders
from .model_card import base_model, in_code, in_line, table
from .modeling_sugar import RetrievalHead, SugarForConditionalGeneration
from .processing_sugar import SugarProcessor
from .tokenizing_sugar import Encoder

#: The chat template that writes a sample without roles as `SugarProcessor` does. The model's own is for generation.
EMBEDDING_TEMPLATE = "embedding_template.jinja"
CHAT = "a chat"
END_MARK = "."
# Names that sentence-transformers has kept, and that vLLM read before it knew the present ones.
_MODULES = "sentence_transformers.models"
_TEMPLATE = """\
{{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}}
{{{{- raise_exception('One message of the user is embedded, as a sample without roles; only Sugar embeds chats.') -}}}}
{{%- endif -%}}
{{{{- {bos} -}}}}
{{%- set content = messages[0]['content'] -%}}
{{%- if content is string -%}}{{{{- content | trim -}}}}
{{%- else -%}}
{{%- for part in content -%}}
{{%- if not loop.first -%}}{{{{- '\\n' -}}}}{{%- endif -%}}
{{%- if part['type'] == 'text' -%}}{{{{- part['text'] | trim -}}}}
{{%- elif part['type'] in ('image', 'image_url') -%}}{{{{- {image} -}}}}
{{%- else -%}}{{{{- raise_exception('Only texts and images are embedded.') -}}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}
"""

_POOLED = {
    "lasttoken": "An engine takes the state of the last token. Sugar takes that of the last slice.",
    "mean": "An engine takes the mean of all tokens. Sugar takes that of the last slice's own.",
}
_MENDS = {
    "lasttoken": f"""\
Where an image comes last, let a short text (`"{END_MARK}"`) follow it, in the index and in queries, or train with
`image_pooling="last"`.""",
    "mean": """\
For samples of several slices, train with `text_pooling="last"`.""",
}


@dataclass(frozen=True)
class ServingReport:
    """What [`export_for_serving`] has written, and which samples other engines embed as Sugar does.

    Args:
        folder: The folder.
        forms: For each form of a sample, why other engines give another vector for it; empty if they give the same.
        pooling: What other engines pool: the `"lasttoken"`, or the `"mean"` of all tokens.
    """

    folder: Path
    forms: dict[str, str]
    pooling: str = "lasttoken"

    @property
    def exact(self) -> list[str]:
        """The forms for which other engines give Sugar's vectors."""
        return [form for form, reason in self.forms.items() if not reason]

    def __str__(self) -> str:
        lines = [f"exact: {', '.join(self.exact) or 'nothing'}"]
        lines += [f"not exact: {form}: {reason}" for form, reason in self.forms.items() if reason]
        return "\n".join(lines)


def export_for_serving(
    model: PreTrainedModel, processor: SugarProcessor, folder: str | Path, *, name: str | None = None
) -> ServingReport:
    """Write a folder that engines read which know nothing of Sugar, without any code from it.

    The backbone lies in it as a model of its own class: transformers, vLLM and others generate with it. Beside it lie
    the modules of sentence-transformers: the last token's state, two dense layers, normalisation. They give Sugar's
    embedding of a sample whose last slice ends with the last token. The report, the card and a warning name the
    samples of which that does not hold. With `text_pooling="mean"` it is the mean of all tokens, which is exact for a
    text alone where the tokenizer puts no token around it.

    Args:
        model: A Sugar model.
        processor: Its processor.
        folder: Where to; made if it is not there.
        name: The model's name, used in the card; the folder's name when `None`.

    Returns:
        What is exact, and what is not.

    Raises:
        ValueError: The model has adapters that are not merged, its backbone needs code of its own or gives the head
            other states than `AutoModel` does, its head is not the one that Sugar trains, its processor does not load
            without Sugar, or no sample at all would be embedded as Sugar does.
    """
    if not isinstance(model, SugarForConditionalGeneration) or has_adapters(model):
        raise ValueError(
            f"cannot export a {type(model).__name__} with adapters. Merge them first: sugar_hf.merge_adapter(model)."
        )
    _check_backbone(model.vlm)
    layers = _head_layers(model.retrieval_head)
    template = embedding_template(processor)
    poolings = (model.config.image_pooling, model.config.text_pooling)
    means = ["mean"] if model.config.text_pooling == "mean" else []
    reports = [
        ServingReport(Path(folder), forms_served(processor, template, *poolings, served), served)
        for served in ("lasttoken", *means)
    ]
    report = max(reports, key=lambda each: len(each.exact))  # of equals, the first
    if not report.exact:
        mend = ', or train with text_pooling="last"' if means else ""
        raise ValueError(f"other engines would embed no sample as Sugar does. Use export_for_hub{mend}.\n{report}")
    with staged(folder) as stage:
        model.vlm.save_pretrained(stage)
        drop_folders(stage / "config.json")
        processor.backbone_processor.save_pretrained(stage)
        _check_processor(stage)
        (stage / EMBEDDING_TEMPLATE).write_text(template, encoding="utf-8")
        _write_modules(stage, layers, template, report.pooling)
        card = _card(model, name or report.folder.name, report)
        (stage / "README.md").write_text(card, encoding="utf-8")
    if any(reason for form, reason in report.forms.items() if form != CHAT):
        warnings.warn(
            f"{report.folder}: other engines do not embed every sample as Sugar does.\n{report}", stacklevel=2
        )
    return report


def _check_backbone(vlm: PreTrainedModel) -> None:
    kind = type(vlm.config)
    if kind not in MODEL_MAPPING or "auto_map" in vars(vlm.config):
        raise ValueError(
            f"a backbone of type {vlm.config.model_type} needs code that is not part of transformers, which other "
            "engines do not run. Use export_for_hub."
        )
    known: Any = MODEL_MAPPING[kind]
    classes = known if isinstance(known, tuple) else (known,)
    if not has_body(vlm) or type(vlm.base_model) not in classes:
        raise ValueError(
            f"AutoModel makes a {classes[0].__name__} of a backbone of type {vlm.config.model_type}, whose states are "
            "not those before the LM head, which the retrieval head was trained on. Use export_for_hub."
        )


def _check_processor(folder: Path) -> None:
    """Refuse a processor that only Sugar can load, without the part of it for videos."""
    try:
        AutoProcessor.from_pretrained(folder)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(
            "AutoProcessor, which other engines use, cannot load this processor. If its part for videos is missing "
            "here, install torchvision, load the processor once more and export then. "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def _head_layers(head: nn.Module) -> list[tuple[nn.Linear, nn.Module]]:
    """Return the head's layers with the activation behind each."""
    if not isinstance(head, RetrievalHead) or not isinstance(head.activation, nn.GELU):
        raise ValueError(
            f"the retrieval head is a {type(head).__name__} that was changed, which dense layers of "
            "sentence-transformers may not express. Use export_for_hub."
        )
    if head.activation.approximate != "none":
        raise ValueError("the retrieval head's GELU is an approximate one, which sentence-transformers cannot name.")
    return [(head.pooled_to_hidden, head.activation), (head.hidden_to_embedding, nn.Identity())]


def embedding_template(processor: SugarProcessor) -> str:
    """Return a chat template that writes one user message as Sugar writes a sample without roles.

    Texts and images stand in their order, with a newline between them. The tokenizer's beginning-of-text token is
    written where the tokenizer writes it, as servers do not add it to what a template gives.
    """
    encoder, tokenizer = Encoder(processor.backbone_processor), processor.tokenizer
    writes_bos = encoder.special_tokens[0] == [tokenizer.bos_token_id]
    placeholder = encoder.controls.placeholder.strip()
    return _TEMPLATE.format(bos=json.dumps(tokenizer.bos_token if writes_bos else ""), image=json.dumps(placeholder))


def forms_served(
    processor: SugarProcessor,
    template: str,
    image_pooling: str,
    text_pooling: str = "last",
    served: str = "lasttoken",
) -> dict[str, str]:
    """Find out of which samples other engines pool what Sugar does; no list of models is consulted.

    Args:
        processor: The processor, with which samples of each form are written both ways.
        template: From [`embedding_template`].
        image_pooling: Of the model.
        text_pooling: Of the model.
        served: What the engines pool: the `"lasttoken"`, or the `"mean"` of all tokens.

    Returns:
        For each form, why other engines pool other states for it; empty if they pool the same.
    """
    wide, tall = drawn_picture(96, 48), drawn_picture(48, 64)
    forms: dict[str, list[Any]] = {
        "a text": ["A drawn picture"],
        "an image, then a text": [wide, "A drawn picture"],
        "a text, an image, a text": ["A drawn picture.", wide, "Another text"],
        "several images, then a text": [wide, tall, "A drawn picture"],
        "an image at the end": ["A drawn picture", wide],
        "an image alone": [wide],
    }
    if text_pooling == "mean":  # the last token of several texts is as that of one
        forms["several texts"] = ["A drawn picture", "Another text"]
    poolings = (image_pooling, text_pooling)
    found = {form: _difference(processor, template, sample, poolings, served) for form, sample in forms.items()}
    found[CHAT] = "a message of the user is embedded as a sample without roles, and other chats are refused"
    return found


def _difference(
    processor: SugarProcessor, template: str, sample: list[Any], poolings: tuple[str, str], served: str
) -> str:
    """Why what engines pool is not what Sugar pools at the last slice; empty if it is."""
    try:
        ours = processor([sample])
    except ValueError as error:
        return f"Sugar's processor does not take it ({error})"
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in sample
    ]
    try:
        theirs = processor.backbone_processor.apply_chat_template(
            [[{"role": "user", "content": content}]],
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"][0].tolist()
    except Exception as error:  # whatever a family's processor raises, engines that use it will meet it too
        return f"the model's processor does not take it ({' '.join(str(error).split())[:100]})"
    real = ours["attention_mask"][0].bool()
    ids, slices = ours["input_ids"][0][real].tolist(), ours["slice_map"][0][real]
    last = (slices.abs() == slices.abs().max()).nonzero()[:, 0].tolist()
    pooling = poolings[0] if slices[last[0]] > 0 else poolings[1]
    follow = len(ids) - 1 - last[-1]
    if ids != theirs:
        extra = len(theirs) - len(ids)
        if extra > 0 and theirs[: len(ids)] == ids:
            return f"the processor writes {extra} more {_tokens(extra)} behind it"
        return "the processor writes it with other tokens, such as one that reaches over the end of a text"
    if served == "mean":
        if others := len(ids) - (len(last) if pooling == "mean" else 1):
            return f"other engines take the mean of all tokens, and Sugar that without {others} of them"
        return ""
    if follow:
        return f"{follow} {_tokens(follow)} stand behind the last slice"
    if len(last) > 1 and pooling != "last":
        return "its tokens are pooled by their mean, and other engines take the last token"
    return ""


def _tokens(count: int) -> str:
    return "token" if count == 1 else "tokens"


def _write_modules(stage: Path, layers: list[tuple[nn.Linear, nn.Module]], template: str, served: str) -> None:
    """Write the modules of sentence-transformers, in words that releases before 6 and vLLM read too."""
    width = layers[0][0].in_features
    names = [
        "",
        "1_Pooling",
        *(f"{number}_Dense" for number in range(2, 2 + len(layers))),
        f"{2 + len(layers)}_Normalize",
    ]
    kinds = ["Transformer", "Pooling", *["Dense"] * len(layers), "Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{kind}"}
        for number, (path, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    old_name = {"lasttoken": "lasttoken", "mean": "mean_tokens"}[served]
    pooling = {
        "embedding_dimension": width,
        "pooling_mode": served,
        **{f"pooling_mode_{mode}": mode == old_name for mode in modes},
        "include_prompt": True,
    }
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = {
        "transformer_task": "feature-extraction",
        # whatever comes is written as a message first, as there is such an entry
        "modality_config": {
            "text": forward,
            "image": forward,
            "image+text": forward,
            "message": {**forward, "format": "structured"},
        },
        "module_output_name": "token_embeddings",
        # in which the head computes; its layers are loaded in the backbone's type
        "model_kwargs": {"dtype": "float32"},
        "processing_kwargs": {
            "text": {"truncation": False, "padding_side": "left"},
            "chat_template": {"chat_template": template, "restore_suffix": False},
        },
    }
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write(stage / "modules.json", modules)
    _write(stage / "sentence_bert_config.json", transformer)
    _write(stage / "config_sentence_transformers.json", settings)
    _write(stage / names[1] / "config.json", pooling)
    for path, (linear, activation) in zip(names[2:], layers, strict=False):
        kind = type(activation)
        dense = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__qualname__}",
        }
        _write(stage / path / "config.json", dense)
        weights = {
            f"linear.{key}": value.detach().float().cpu().contiguous() for key, value in linear.named_parameters()
        }
        save_file(weights, stage / path / "model.safetensors", metadata={"format": "pt"})
    _write(stage / names[-1] / "config.json", {})


def _write(file: Path, settings: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _card(model: SugarForConditionalGeneration, name: str, report: ServingReport) -> str:
    base, _ = base_model(model)
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="image-text-to-text",
        base_model=base,
        tags=["sugar", "sentence-transformers", "multimodal-retrieval", "image-text-to-text", "arxiv:2411.00304"],
    )
    rows = [(form, reason or "yes") for form, reason in report.forms.items()]
    code = in_code(name)
    return f"""---
{data.to_yaml().strip()}
---

# {in_line(name.split("/")[-1])}

A [Sugar](https://arxiv.org/abs/2411.00304) model for engines that know nothing of Sugar: a vision-language model of
type `{in_code(model.vlm.config.model_type)}` as it is, and beside it the retrieval head as modules of
sentence-transformers. Nothing here needs `trust_remote_code`.

## Generate

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{code}")
processor = AutoProcessor.from_pretrained("{code}")
```

## Embed

```python
from sentence_transformers import SentenceTransformer  # 6.2 or later

model = SentenceTransformer("{code}")
model.encode(["a red cat", {{"image": image, "text": "a red cat"}}])  # (2, {model.config.retrieval_dim})
```

```bash
vllm serve {code} --runner pooling --convert embed \\
  --chat-template {EMBEDDING_TEMPLATE} --chat-template-content-format openai
```

{_POOLED[report.pooling]} The vectors are the same for:

{table(("sample", "the same vector"), rows)}

{_MENDS[report.pooling]} A text must not hold the model's control tokens, which Sugar reads as text and engines obey.
"""
