"""Sugar models in lmms-eval, under the name `sugar`.

A chat model in lmms-eval's terms: a task hands over messages in which texts and images may alternate. The simple kind
of model gets a text and a list of images, and would lose the places of the images.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from loguru import logger
from tqdm import tqdm
from transformers import AutoConfig
from transformers.utils import find_adapter_config_file

from ...model import DefaultModel, SugarConfig, SugarForConditionalGeneration, SugarGenerationPipeline, SugarProcessor

IMAGE_MARK = "<image>"
BLANK_LINE = "\n\n"
_SAMPLING = ("temperature", "top_p", "top_k")
_PASSED = ("num_beams", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "min_new_tokens")
_READ = {"do_sample", "until", "max_new_tokens", "max_gen_toks", *_SAMPLING, *_PASSED}


class SugarChatModel(lmms):
    """A Sugar model, or any vision-language model of transformers, as a chat model of lmms-eval.

    ```bash
    python -m lmms_eval --model sugar --model_args pretrained=sugar,dtype=bfloat16 --tasks pope --batch_size 8
    ```

    The answers are those of `SugarGenerationPipeline` for the same messages, cut at the task's `until`.

    Args:
        pretrained: Hub name or folder of a Sugar checkpoint, of adapters on one, or of a plain vision-language model;
            what `pipeline("sugar-generation")` takes when `None`: `./sugar`, else the mini checkpoint of the package.
        batch_size: Requests in one call of `generate`.
        device: Where it runs; what Accelerate gives this process when `None`.
        dtype: Data type of the weights; the checkpoint's with `"auto"`.
        attn_implementation: See `PreTrainedModel.from_pretrained`.
        device_map: See `PreTrainedModel.from_pretrained`; spreads a model over several devices, without `device`.
        revision: Revision on the Hub.
        chat_template: File with a Jinja template in the place of the model's own.
        system_prompt: System message of every request, or a file that holds it.

    Raises:
        ValueError: `batch_size` is no whole number above 0, there are both `device` and `device_map`, or a plain model
            has no chat template.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str | None = None,
        device_map: str | None = None,
        revision: str = "main",
        chat_template: str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r}: give a whole number of 1 or more; no other is looked for.")
        if device is not None and device_map is not None:
            raise ValueError(f"device={device!r} and device_map={device_map!r}: give one of them.")
        if pretrained is None:
            pretrained, _ = DefaultModel()["model"]
            logger.info(f"model: {pretrained} (no pretrained= given)")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        options = {"attn_implementation": attn_implementation, "device_map": device_map}
        options = {name: value for name, value in options.items() if value is not None}
        self._model = load_model(pretrained, dtype=dtype, revision=revision, **options)
        if device_map is None:
            self._model.to(self.accelerator.device if device is None else device)
        self.device = self._model.device  # the evaluator gathers on it
        # a pipeline may not name the device of a model that is spread over several
        self._pipeline_device = None if "hf_device_map" in vars(self._model) else self.device
        self.processor = SugarProcessor.from_pretrained(pretrained, revision=revision)
        if chat_template is not None:
            self.processor.chat_template = Path(chat_template).read_text(encoding="utf-8")
        if self.processor.chat_template is None:
            raise ValueError(f"{pretrained} has no chat template: give a file with one as chat_template=.")
        self._system_prompt = self._resolve_system_prompt(system_prompt or "")
        self._warned: set[str] = set()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer requests. Those with equal generation options share batches, those with long questions first.

        Args:
            requests: Their arguments are (question, function from document to messages, generation options, number of
                the document, task, split). See [`generation_options_of`] for the options.

        Returns:
            An answer to each, in order.

        Raises:
            ValueError: A document's messages hold audio or video, or cannot be read; the error names it. Or the
                requests are those that lmms-eval makes for simple models.
        """
        return self._in_batches(
            requests, lambda batch: self._answer(batch, [args[1](self._document(args)) for args in batch])
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer requests of several rounds; the task makes each round's messages from the answers before.

        Returns:
            The answers to each request, one for each round.
        """
        return self._in_batches(requests, self._answer_rounds)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not there: lmms-eval hands chat models no such request; its tasks of messages all generate.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "sugar is a chat model, to which lmms-eval makes generation requests only. Use the task's variant with "
            "`output_type: generate_until`."
        )

    def _in_batches(self, requests: list[Instance], answer: Any) -> list[Any]:
        arguments = [request.args for request in requests]
        if not all(callable(args[1]) for args in arguments):
            raise ValueError(
                f"{requests[0].task_name}: lmms-eval made requests without messages, as it does for a task that is "
                "given by its file. Give the folder as --include_path and the task by its name."
            )
        collator = Collator(
            arguments,
            lambda args: (-len(args[0]), args[0]),
            group_fn=lambda args: args[2],
            grouping=True,
        )
        answers: list[Any] = []
        with tqdm(total=len(requests), desc="Model Responding", disable=self.rank != 0) as bar:
            for batch in collator.get_batched(n=self.batch_size):
                answers += answer(batch)
                bar.update(len(batch))
        return collator.get_original(answers)

    def _document(self, args: tuple[Any, ...]) -> Any:
        _, _, _, doc_id, task, split = args
        return self.task_dict[task][split][doc_id]

    def _answer_rounds(self, batch: list[tuple[Any, ...]]) -> list[list[str]]:
        answers: list[list[str]] = [[] for _ in batch]
        infos: list[Any] = [None] * len(batch)
        messages = {i: args[1](self._document(args)) for i, args in enumerate(batch)}
        number = 0
        while messages:
            replies = self._answer([batch[i] for i in messages], list(messages.values()))
            for i, reply in zip(messages, replies, strict=True):
                answers[i].append(reply)
            number += 1
            asked, messages = list(messages), {}
            for i in asked:
                payload = batch[i][1](
                    self._document(batch[i]),
                    round_idx=number,
                    previous_output=list(answers[i]),
                    previous_round_info=infos[i],
                )
                if isinstance(payload, tuple) and not payload[1]:  # (messages, is it over, outputs, information)
                    messages[i], _, _, infos[i] = payload
        return answers

    def _answer(self, batch: list[tuple[Any, ...]], messages: list[Any]) -> list[str]:
        options, stops, ignored = generation_options_of(batch[0][2])
        if ignored:
            self._warn_once(
                str(ignored),
                f"generation options that a Sugar model does not have are passed over: {', '.join(ignored)}",
            )
        names = [f"{task}, document {doc_id}" for _, _, _, doc_id, task, _ in batch]
        chats = [self._chat(*row) for row in zip(messages, names, strict=True)]
        # made anew, because nothing may hold the model when lmms-eval frees it for a judge
        pipe = SugarGenerationPipeline(
            model=self._model, processor=self.processor, device=self._pipeline_device, task="sugar-generation"
        )
        try:
            replies = pipe(chats, batch_size=len(chats), **options)
        except ValueError as error:
            raise ValueError(f"inputs 0 to {len(names) - 1} are {'; '.join(names)}: {error}") from error
        texts = [cut(reply[0]["generated_text"], stops) for reply in replies]
        for args, text in zip(batch, texts, strict=True):
            self.cache_hook.add_partial("generate_until", (args[0], args[2]), text)
        return texts

    def _chat(self, messages: Any, name: str) -> list[dict[str, Any]]:
        chat = []
        for message in ChatMessages(messages=messages).messages:
            parts = list(_parts(message.content, name))
            placed = place_images(parts)
            if placed is None:
                self._warn_once(
                    IMAGE_MARK, f"{name}: the number of {IMAGE_MARK} is not that of the images, so they stay text"
                )
            chat.append({"role": message.role, "content": placed or parts})
        return self._apply_system_prompt(chat, self._system_prompt)

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(text)


def load_model(pretrained: str, **options: Any) -> SugarForConditionalGeneration:
    """Load a Sugar model for generation; a plain vision-language model is wrapped, and its head stays unused.

    Args:
        pretrained: Hub name or folder of a Sugar checkpoint, of adapters on one, or of an image-text-to-text model.
        **options: Those of `PreTrainedModel.from_pretrained`; `revision` must be among them.

    Raises:
        ValueError: See `SugarForConditionalGeneration.from_pretrained` and `from_backbone`.
    """
    is_adapter = find_adapter_config_file(pretrained, revision=options["revision"]) is not None
    if is_adapter or isinstance(AutoConfig.from_pretrained(pretrained, revision=options["revision"]), SugarConfig):
        model = SugarForConditionalGeneration.from_pretrained(pretrained, **options)
    else:
        logger.info(f"{pretrained} is no Sugar model: it is wrapped as it is")
        model = SugarForConditionalGeneration.from_backbone(pretrained, **options)
    return model.eval()


def generation_options_of(task_options: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Read the generation options of a task.

    Sampled is with a `temperature` above 0 or with `do_sample: true`, greedy with `temperature: 0`, with
    `do_sample: false` and without either. An `until` of a blank line is no stop: lmms-eval writes it into tasks that
    name none, and the models that come with it pass it over too.

    Returns:
        Options of `generate`; texts at which an answer is cut; names that mean nothing here.

    >>> generation_options_of({"max_new_tokens": 8, "temperature": 0, "until": ["Q:", "\\n\\n"], "visual_cot": False})
    ({'do_sample': False, 'max_new_tokens': 8}, ['Q:'], ['visual_cot'])
    """
    given = {name: value for name, value in task_options.items() if value is not None}
    temperature = given.get("temperature")
    sampled = bool(given.get("do_sample", temperature)) and temperature != 0
    options: dict[str, Any] = {"do_sample": sampled}
    if (length := given.get("max_new_tokens", given.get("max_gen_toks"))) is not None:
        options["max_new_tokens"] = int(length)
    options |= {name: given[name] for name in (*_PASSED, *(_SAMPLING if sampled else ())) if name in given}
    until = given.get("until", [])
    stops = [until] if isinstance(until, str) else list(until)
    return options, [stop for stop in stops if stop and stop != BLANK_LINE], sorted(given.keys() - _READ)


def cut(text: str, stops: Iterable[str]) -> str:
    """The text before the first stop in it.

    >>> cut("a dog Q: what?", ["Q:", "dog Q"])
    'a'
    """
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].strip()


def place_images(parts: list[Any]) -> list[Any] | None:
    """Put images where the text has a mark for each.

    A task that makes no messages itself gives its images first and one text after them. If that text has as many
    `<image>` as there are images, they say where the images belong. All else stays as it is.

    Returns:
        Texts and images in order, or `None` if there are marks but not as many as images.

    >>> place_images([{"type": "image", "path": "a.png"}, "what is <image>?"])
    ['what is ', {'type': 'image', 'path': 'a.png'}, '?']
    """
    *images, text = parts if parts else [None]
    if not isinstance(text, str) or not images or any(isinstance(part, str) for part in images):
        return parts
    pieces = text.split(IMAGE_MARK)
    if len(pieces) == 1:
        return parts
    if len(pieces) != len(images) + 1:
        return None
    placed = [pieces[0]]
    for image, piece in zip(images, pieces[1:], strict=True):
        placed += [image, piece]
    return [part for part in placed if not isinstance(part, str) or part.strip()]


def _parts(content: Iterable[Any], name: str) -> Iterator[Any]:
    """Texts as str and images as parts; texts without a word are left out, as a chat template would write nothing."""
    for part in content:
        if part.type == "text":
            if part.text.strip():
                yield part.text
        elif part.type != "image":
            raise ValueError(f"{name}: has {part.type}. A Sugar model takes texts and images; choose another task.")
        elif isinstance(part.url, str):
            key = "url" if part.url.startswith(("http://", "https://", "data:")) else "path"
            yield {"type": "image", key: part.url}
        else:
            yield {"type": "image", "image": part.url}
