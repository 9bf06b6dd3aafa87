"""What has to hold for a tiny model of any type, step by step, and the row of docs/backbones.md that comes of it."""

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from backbone_table import Row
from builders import BUILDERS, cached_sugar
from builders import picture as picture_of
from peft import PeftModel, get_peft_model
from shrinker import tiny_model
from tiny_inputs import BEFORE, TinyInputs, tiny_inputs
from tiny_processors import NotBuilt, processor_forms, tiny_processor
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor, check_prefix_embeddings
from sugar_hf.training import sugar_lora_config

#: Types that are not tried, and why.
NOT_TRIED = {
    "shieldgemma2": "a classifier of pictures, whose weights transformers does not find again in what it saves",
}
#: Said of the forms of samples where torchvision is not installed.
NEEDS_TORCHVISION = "not tried: it needs torchvision"
#: Types that read no text without a picture.
NO_TEXT_ALONE = {"idefics"}
#: Parts of names under which no adapter may lie.
NOT_LANGUAGE = re.compile(r"vis|image|audio|perceiver|qformer|encoder")


@dataclass
class Subject:
    """A type under test: the backbone alone, the same one wrapped, their inputs, a folder, cells of the table."""

    raw: PreTrainedModel
    sugar: SugarForConditionalGeneration
    given: TinyInputs
    folder: Path
    found: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Any]:
        return self.given.inputs


def embed(model: Any, inputs: dict[str, Any], slice_map: Tensor) -> Tensor:
    """Embed slices. (B, 3, d), zeros where there is none."""
    with torch.no_grad():
        return model.get_retrieval_embeddings(**inputs, slice_map=slice_map)[0]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Fail unless two state dicts are the same, bit by bit."""
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())[:4]
    other = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not other, f"other weights: {other[:4]}"


def close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Fail unless two tensors are nearly the same."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} for {tuple(expected.shape)}"
    scale = max(1.0, float(expected.abs().max()) if expected.numel() else 1.0)
    away = float((found.float() - expected.float()).abs().max()) / scale if expected.numel() else 0.0
    assert away <= tolerance, f"{what}: {away:.1e} away"  # also if it is not a number


def outputs(subject: Subject) -> None:
    """Logits and loss are the backbone's, bit by bit, and so are its weights."""
    same(subject.sugar.vlm.state_dict(), subject.raw.state_dict())
    labels = subject.given.labels
    with torch.no_grad():
        expected = subject.raw(**subject.inputs, labels=labels)
        found = subject.sugar(**subject.inputs, labels=labels, slice_map=subject.given.slice_map)
    assert torch.equal(found.logits, expected.logits), "other logits"
    assert torch.equal(found.loss, expected.loss), "another loss"
    assert found.logits.shape[:2] == labels.shape, f"logits {tuple(found.logits.shape)}"


def loss_without_logits(subject: Subject) -> None:
    """`skip_logits` changes neither the loss nor a gradient."""
    found = []
    for skip in (False, True, True):
        subject.sugar.zero_grad()
        loss = subject.sugar(**subject.inputs, labels=subject.given.labels, skip_logits=skip).loss
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in subject.sugar.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients))
    subject.sugar.zero_grad()
    (loss, gradients), *others = found
    for other_loss, other_gradients in others:
        close(other_loss, loss, "loss")
        assert other_gradients.keys() == gradients.keys(), "gradients of other parameters"
        largest = max(float(value.abs().max()) for value in gradients.values())
        for name, value in gradients.items():
            close(other_gradients[name] / largest, value / largest, f"gradient of {name}", 1e-4)


def embeddings(subject: Subject) -> None:
    """Embeddings are unit vectors, with logits or without, and those of the head on the states that logits are of."""
    slices = subject.given.slice_map
    with torch.no_grad():
        output = subject.sugar(**subject.inputs, slice_map=slices)
    embeds, hidden = output.retrieval_embeds, output.last_hidden_state
    assert hidden.shape[:2] == slices.shape, f"states {tuple(hidden.shape)} for ids {tuple(slices.shape)}"
    there = torch.stack([(slices == number).any(1) for number in (1, 2, 3)], 1)
    assert torch.equal(output.retrieval_mask, there)
    close(embeds.norm(dim=-1), there.float(), "norms")
    close(embed(subject.sugar, subject.inputs, slices), embeds, "embeddings without logits")
    with torch.no_grad():
        close(subject.sugar.retrieval_head(hidden[:, -1]), embeds[:, 2], "embedding of the last token")
        head = subject.raw.get_output_embeddings()
        if head is not None:
            # whatever scales or caps logits afterwards keeps their order
            raw = head(hidden[:, -1])[..., : output.logits.shape[-1]]
            assert torch.equal(raw.argmax(-1), output.logits[:, -1].argmax(-1)), "states that logits are not of"


def picture(subject: Subject) -> None:
    """Another picture moves its slice, and no other sample's."""
    slices = subject.given.slice_map
    before = embed(subject.sugar, subject.inputs, slices)
    after = embed(subject.sugar, subject.given.other_picture, slices)
    moved = (before - after).norm(dim=-1)
    if not subject.given.picture_inputs:
        subject.found["note"] = "takes text alone"
        return
    seen = 1 if (slices == 2).any() else 2
    assert moved[0, seen] > 1e-3, "the picture does not reach its slice"
    assert moved[1].max() < 1e-4, "it reaches another sample"


def generation(subject: Subject) -> None:
    """`generate` gives what the backbone's does."""
    options = {"max_new_tokens": 3, "do_sample": False}
    expected = subject.raw.generate(**subject.inputs, **options)
    found = subject.sugar.generate(**subject.inputs, slice_map=subject.given.slice_map, **options)
    assert torch.equal(found, expected)


def checkpointing(subject: Subject) -> None:
    """Gradient checkpointing changes no gradient."""
    if not subject.raw.supports_gradient_checkpointing:
        subject.found["note"] = "no gradient checkpointing"
        return
    model = subject.sugar.train()
    found = []
    for used in (False, True):
        if used:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(0)
        output = model(**subject.inputs, labels=subject.given.labels, slice_map=subject.given.slice_map)
        (output.loss + output.retrieval_embeds.sum()).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.gradient_checkpointing_disable()
    model.zero_grad()
    model.eval()
    assert found[0].keys() == found[1].keys()
    largest = max(float(value.abs().max()) for value in found[0].values())
    for name, value in found[0].items():
        close(found[1][name] / largest, value / largest, f"gradient of {name}", 1e-4)


def folder(subject: Subject) -> None:
    """What is saved comes back bit by bit."""
    subject.sugar.save_pretrained(subject.folder / "sugar")
    loaded = SugarForConditionalGeneration.from_pretrained(subject.folder / "sugar")
    same(loaded.state_dict(), subject.sugar.state_dict())
    slices = subject.given.slice_map
    expected = embed(subject.sugar, subject.inputs, slices)
    assert torch.equal(embed(loaded.eval(), subject.inputs, slices), expected), "other embeddings"


def from_path(subject: Subject) -> None:
    """`from_backbone(path)` has the weights that transformers loads, and its head is float32 in any dtype."""
    subject.raw.save_pretrained(subject.folder / "backbone")
    expected = AutoModelForImageTextToText.from_pretrained(subject.folder / "backbone")
    loaded = SugarForConditionalGeneration.from_backbone(subject.folder / "backbone", retrieval_dim=16)
    same(loaded.vlm.state_dict(), expected.state_dict())
    with torch.no_grad():
        theirs = expected.eval()(**subject.inputs).logits
        assert torch.equal(loaded.eval()(**subject.inputs).logits, theirs), "other logits"
        own = torch.equal(theirs, subject.raw(**subject.inputs).logits)
    if not own:
        subject.found["note"] = "transformers' own round trip changes its logits"


def half_precision(subject: Subject) -> None:
    """In bfloat16 the head stays float32 and embeddings stay near."""
    if not (subject.folder / "backbone").exists():
        subject.raw.save_pretrained(subject.folder / "backbone")
    model = SugarForConditionalGeneration.from_backbone(
        subject.folder / "backbone", retrieval_dim=16, dtype=torch.bfloat16
    ).eval()
    assert {p.dtype for p in model.retrieval_head.parameters()} == {torch.float32}
    inputs = {
        name: value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in subject.inputs.items()
    }
    embeds = embed(model, inputs, subject.given.slice_map)
    assert embeds.dtype == torch.float32
    assert embeds.isfinite().all()


def prefixes(subject: Subject) -> None:
    """Whether the embedding at a slice end is that of the sample which ends there."""
    slices = subject.given.slice_map
    whole = embed(subject.sugar, subject.inputs, slices)
    parts = {len(BEFORE): subject.given.without_picture(subject.given.upto(len(BEFORE)))}
    if (slices == 2).any():
        end = int((slices[0] == 2).nonzero().max()) + 1
        parts[end] = subject.given.upto(end)
    if subject.raw.config.model_type in NO_TEXT_ALONE:
        parts.pop(len(BEFORE))
    away = 0.0
    for end, inputs in parts.items():
        part = embed(subject.sugar, inputs, slices[:, :end])
        away = max(away, float((part - whole[:, : part.shape[1]]).abs().max()))
    subject.found["prefixes"] = "exact" if away < 1e-4 else "no: tokens see, or are placed by, what comes after them"


def shortened(answer: str) -> str:
    """What Sugar says of a form of samples, without the error's kind, the sample, another's words and what to do."""
    return re.sub(r"^\w+Error: (sample 0: )?", "", answer).partition(" (")[0].partition(". ")[0]


def processor(subject: Subject) -> None:
    """Which forms of samples its processor takes; the model reads what comes of them."""
    try:
        backbone_processor = tiny_processor(subject.raw.config.model_type, subject.raw.config)
    except NotBuilt as error:
        needs_torchvision = "requires the Torchvision" in str(error)
        subject.found["forms"] = NEEDS_TORCHVISION if needs_torchvision else f"not tried: {error}"
        return
    forms = processor_forms(backbone_processor)
    good = [form for form, answer in forms.items() if answer == "yes"]
    if len(good) == len(forms):
        subject.found["forms"] = "all"
    else:
        bad: dict[str, list[str]] = {}
        for form, answer in forms.items():
            if answer != "yes":
                bad.setdefault(shortened(answer), []).append(form)
        reasons = "; ".join(f"not {', '.join(names)}: {answer}" for answer, names in bad.items())
        subject.found["forms"] = f"{', '.join(good)}; {reasons}" if good else reasons
    if subject.raw.config.model_type in BUILDERS:  # a model and a processor of the same sizes
        note_prefixes(subject, *cached_sugar(subject.raw.config.model_type))
        return
    if "interleaved" not in good:
        return
    sugar_processor = SugarProcessor(backbone_processor)
    found = []
    for seed in (1, 9):
        inputs = dict(sugar_processor([["A cat.", picture_of(seed, 48, 48), "A dog."]]))
        slices = inputs.pop("slice_map")
        try:
            with torch.no_grad():
                subject.raw(**inputs)
        except Exception:  # made for other sizes than the tiny model has
            return
        found.append(embed(subject.sugar, inputs, slices))
    one, other = found
    moved = (one - other).norm(dim=-1)[0]
    assert moved[1] > 1e-3, "the picture of a sample does not reach its slice"
    if "adjacent images" in good:
        note_prefixes(subject, subject.sugar, sugar_processor)


def note_prefixes(subject: Subject, model: SugarForConditionalGeneration, sugar_processor: SugarProcessor) -> None:
    """Ask with several pictures, adjacent too, whether prefixes are exact."""
    check = check_prefix_embeddings(model, sugar_processor)
    if not check.is_exact:
        subject.found["prefixes"] = f"no: {'; '.join(check.reasons)}"


def lora(subject: Subject) -> None:
    """Three steps of LoRA move what they should, and the adapter loads and merges."""
    base_folder = subject.folder / "sugar"
    if not base_folder.exists():
        subject.sugar.save_pretrained(base_folder)
    base = SugarForConditionalGeneration.from_pretrained(base_folder)
    torch.manual_seed(0)
    model = get_peft_model(base, sugar_lora_config(base, r=4, lora_alpha=8))
    adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A.default")]
    assert adapted, "no adapter"
    subject.found["lora"] = layers_reached(subject.raw, adapted)
    decoder_parts = [name.split("lora_A")[0] for name in adapted]
    assert not [name for name in decoder_parts if NOT_LANGUAGE.search(name.removeprefix("base_model.model."))]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    wanted = {name for name, value in model.named_parameters() if value.requires_grad}
    assert any("retrieval_head" in name for name in wanted), "the head is frozen"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        output = model(**subject.inputs, labels=subject.given.labels, slice_map=subject.given.slice_map)
        found = output.retrieval_embeds[:, [0, -1]]
        (output.loss + (found[:, 0] * found[:, 1]).sum()).backward()
        optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    assert moved == wanted, f"moved or not: {sorted(moved ^ wanted)[:4]}"
    model.eval()
    slices = subject.given.slice_map

    def results(found: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            output = found.eval()(**subject.inputs, slice_map=slices)
        return output.logits, output.retrieval_embeds

    expected = results(model)
    start = results(SugarForConditionalGeneration.from_pretrained(base_folder))
    assert not torch.equal(start[1], expected[1])
    model.save_pretrained(subject.folder / "adapter")
    fresh = SugarForConditionalGeneration.from_pretrained(base_folder)
    loaders: dict[str, Callable[[], Any]] = {
        "from_pretrained(adapter)": lambda: SugarForConditionalGeneration.from_pretrained(subject.folder / "adapter"),
        "PeftModel": lambda: PeftModel.from_pretrained(fresh, subject.folder / "adapter"),
    }
    for name, load in loaders.items():
        loaded = load()
        for ours, theirs in zip(results(loaded), expected, strict=True):
            assert torch.equal(ours, theirs), f"{name}: another model"
    merged = loaded.merge_and_unload()
    for ours, theirs in zip(results(merged), expected, strict=True):
        close(ours, theirs, "merged", 1e-3)


def layers_reached(raw: PreTrainedModel, adapted: list[str]) -> str:
    """How many layers of the language model have an adapter: "n of m"."""
    numbers = {match.group(1) for name in adapted if (match := re.search(r"\.(\d+)\.(?!.*\.\d+\.)", name))}
    return f"{len(numbers)} of {raw.config.get_text_config().num_hidden_layers}"


STEPS: tuple[Callable[[Subject], None], ...] = (
    outputs,
    loss_without_logits,
    embeddings,
    picture,
    generation,
    checkpointing,
    folder,
    from_path,
    half_precision,
    prefixes,
    processor,
    lora,
)


def refusal(error: Exception) -> str | None:
    """Sugar's own reason for not wrapping a type, None if an error is another one."""
    _, word, reason = str(error).partition(" cannot be a backbone of Sugar: ")
    if not word or not isinstance(error, ValueError):
        return None
    return re.sub(r" \(.*(Error|object has).*", "", reason.partition(". ")[0].rstrip("."))  # not what another says


def said(error: Exception) -> str:
    """An error in a line: its kind, what it says first, and where."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})"


def try_type(model_type: str, folder: Path) -> tuple[Row, dict[str, str]]:
    """Take a type through every step; a step that fails does not keep the next from being taken.

    Returns:
        The type's row in the table, and what failed, by step.
    """
    if model_type in NOT_TRIED:
        return Row(model_type, state="not tried", note=NOT_TRIED[model_type]), {}
    raw = tiny_model(model_type)
    row = Row(model_type, type(raw).__name__)
    failures: dict[str, str] = {}
    try:
        sugar = SugarForConditionalGeneration.from_backbone(tiny_model(model_type), retrieval_dim=16)
        try:
            given = tiny_inputs(raw)
            with torch.no_grad():
                raw(**given.inputs)
        except Exception as error:
            return replace(row, state="not tried", note=f"its own model of transformers fails: {said(error)}"), {}
        subject = Subject(raw, sugar, given, folder)
        for step in STEPS:
            try:
                step(subject)
            except Exception as error:
                if refusal(error):
                    raise
                failures[step.__name__] = said(error)
                sugar.zero_grad()
                sugar.gradient_checkpointing_disable()
                sugar.eval()
        row = replace(row, **subject.found)
    except Exception as error:
        reason = refusal(error)
        if reason:
            return replace(row, state="refused", note=reason), {}
        failures["wrapping"] = said(error)
    return row, failures
