"""Model cards: what a repository on the Hub says of its model, written by the template beside this file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

TEMPLATE = Path(__file__).with_name("model_card_template.md")
TAGS = ("sugar", "multimodal-retrieval", "image-text-to-text", "sentence-transformers", "arxiv:2411.00304")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def model_card(
    model: PreTrainedModel,
    name: str,
    metrics: Mapping[str, float | str] | str | None = None,
    description: str = "",
    card_data: Mapping[str, Any] | None = None,
    *,
    training: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> str:
    """Write a model card.

    Args:
        model: A Sugar model.
        name: Its name on the Hub.
        metrics: Results: a table of names and values, or Markdown.
        description: A paragraph in Markdown without HTML.
        card_data: Further metadata (`license`, `datasets`, `base_model`, ...).
        training: How the model was trained: what `sugar_hf.training.training_record` gives.
        notes: Sentences that stand out, in Markdown.

    Returns:
        The card in Markdown, with its metadata.
    """
    given = dict(card_data or {})
    base, revision = base_model(model)
    if base and base != name and "base_model" not in given:
        given["base_model"] = base
    tags = dict.fromkeys([*TAGS, *given.pop("tags", ())])
    data = ModelCardData(
        library_name=given.pop("library_name", "transformers"),
        pipeline_tag=given.pop("pipeline_tag", "image-text-to-text"),
        tags=list(tags),
        **given,
    )
    named = given.get("base_model")
    details: dict[str, str] = {}
    if named is not None:
        links = [linked(each) for each in ([named] if isinstance(named, str) else named)]
        at = f" at revision `{in_code(revision)}`" if revision and named == base else ""
        details["Base model"] = ", ".join(links) + at
    details["Backbone"] = f"type `{in_code(model.config.vlm_config.model_type)}`"
    details["Embeddings"] = (
        f"{model.config.retrieval_dim} dimensions, compared by cosine; the tokens of an image are pooled by "
        f"`{in_code(model.config.image_pooling)}`, of a text by `{in_code(model.config.text_pooling)}`"
    )
    if "license" in given:
        details["License"] = in_line(given["license"])
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=in_line(name.split("/")[-1]),
        model=in_code(name),
        description=without_html(description),
        base=f"`{in_code(named)}`"
        if isinstance(named, str)
        else f"type `{in_code(model.config.vlm_config.model_type)}`",
        details=details,
        notes=notes,
        results=metrics
        if metrics is None or isinstance(metrics, str)
        else table(("Metric", "Value"), metrics.items()),
        training=training,
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).strip() + "\n"


def base_model(model: PreTrainedModel) -> tuple[str | None, str | None]:
    """Return the Hub name and the revision of what a Sugar model was made of; a folder on this machine has none."""
    config = model.config
    for each in (config, model.vlm.config, config.vlm_config):
        name = str(each.name_or_path or "")
        if is_hub_name(name):
            return name, vars(each).get("_commit_hash")
    return None, None


def is_hub_name(name: str) -> bool:
    """Whether this is the name of a repository, `user/name`, and no folder on this machine.

    >>> is_hub_name("llava-hf/llava-1.5-7b-hf"), is_hub_name("/home/me/sugar")
    (True, False)
    """
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def table(header: tuple[str, ...], rows: Any) -> str:
    """Write a table in Markdown; numbers get four digits, and whatever stands in a cell cannot leave it."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(map(_figure, row)) + " |" for row in rows]
    return "\n".join(lines)


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else in_cell("" if value is None else value)


def linked(name: object, kind: str = "") -> str:
    """A name, as a link to its page if it is one of the Hub; `kind` is `datasets/` for a data set."""
    text = in_code(name)
    return f"[{text}](https://huggingface.co/{kind}{text})" if _HUB_NAME.fullmatch(text) else f"`{text}`"


def without_html(text: str) -> str:
    """Markdown whose HTML is shown instead of obeyed; the Hub cleans cards, other viewers may not."""
    return text.replace("<", "&lt;")


def in_line(text: object) -> str:
    """A text in a line of Markdown."""
    return without_html(" ".join(str(text).split()))


def in_cell(text: object) -> str:
    """A text in a cell of a table."""
    return in_line(text).replace("|", "\\|")


def in_code(text: object) -> str:
    """A name in code, between backticks or in quotes, which it must not end."""
    return " ".join(str(text).split()).translate({ord(c): None for c in '`"\\'})
