"""What marks free answers: a language model behind an endpoint, or one that runs here."""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from email.message import Message
from http.client import HTTPException
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urldefrag

import torch
from jinja2 import TemplateError
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

OPENAI = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"

_REFUSALS = (400, 413, 422)  # this prompt is not taken; another may be
_PASSING = (408, 409, 425, 429)  # and 5xx: worth another try
_LONGEST_WAIT = 60.0  # seconds


class RefusedPromptError(ValueError):
    """A judge does not take this one prompt; it may take others."""


@runtime_checkable
class Judge(Protocol):
    """Answers prompts of a marking scheme."""

    name: str

    def __call__(
        self, prompt: str, *, system: str | None = None, temperature: float = 0.0, max_tokens: int = 1024
    ) -> str:
        """Answer one prompt.

        Args:
            prompt: The user's turn.
            system: The system message, if there is one.
            temperature: 0 for greedy decoding.
            max_tokens: The longest reply.

        Raises:
            RefusedPromptError: It does not take this prompt; the sample is counted as unjudged.
            ValueError: It takes none.
            ConnectionError: It cannot be reached.
        """


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint for chat completions.

    The requests are made with the standard library: `huggingface_hub.InferenceClient` refuses any host, this machine
    too, in offline mode, and gives the token of the Hub to a host for which there is no key. The key is read from
    the environment and written nowhere; redirects are not followed, since it would be sent along.

    Args:
        url: The endpoint up to `/chat/completions`, such as `https://host/v1`.
        model: The model's name there.
        key_variable: Environment variable with the key; without one, none is sent.
        tries: How often a request is made that fails for a passing reason (too many requests, 5xx, no connection).
        wait: Seconds before the second try, doubled before each further one; a server's `Retry-After` counts if it
            is longer. At most a minute.
        timeout: Seconds for one request.

    Raises:
        ValueError: The URL is none of HTTP.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = KEY_VARIABLE,
        tries: int = 6,
        wait: float = 1.0,
        timeout: float = 120.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no endpoint: write it as https://host/v1")
        self.name = model
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.tries, self.wait, self.timeout = tries, wait, timeout
        self._key_variable, self._key = key_variable, os.environ.get(key_variable)
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __call__(
        self, prompt: str, *, system: str | None = None, temperature: float = 0.0, max_tokens: int = 1024
    ) -> str:
        """See [`Judge`]."""
        body: dict[str, Any] = {"model": self.name, "messages": _chat(prompt, system)}
        body |= {"temperature": temperature, "max_tokens": max_tokens}
        for number in range(1, self.tries + 1):
            asked = 0.0
            try:
                return _content(self._post(body), self.url)
            except urllib.error.HTTPError as error:
                said = self._said(error)
                if error.code in _REFUSALS:
                    raise RefusedPromptError(said) from None
                if error.code not in _PASSING and error.code < 500:
                    raise ValueError(f"{said}. Check URL, model and {self._key_variable}.") from None
                asked = _seconds(error.headers)
            except (OSError, HTTPException) as error:  # no connection, or one that broke
                said = f"{self.url}: {error}"
            if number < self.tries:
                time.sleep(min(max(self.wait * 2 ** (number - 1), asked), _LONGEST_WAIT))
        raise ConnectionError(f"{said} ({self.tries} tries). What was judged is kept: the same command goes on.")

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        with self._opener.open(request, timeout=self.timeout) as response:
            return bytes(response.read())

    def _said(self, error: urllib.error.HTTPError) -> str:
        text = " ".join(error.read().decode("utf-8", "replace").split())
        if self._key:
            text = text.replace(self._key, "***")  # some servers repeat it
        return f"{self.url} says {error.code} {error.reason}: {text[:300]}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


def _chat(prompt: str, system: str | None) -> list[dict[str, Any]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _content(reply: bytes, url: str) -> str:
    """The text of a reply; empty if the model said nothing."""
    try:
        return str(json.loads(reply)["choices"][0]["message"]["content"] or "")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{url}: no chat completion but {reply[:200]!r}. Is it an OpenAI-compatible URL?") from error


def _seconds(headers: Message) -> float:
    """What a server asks to wait; a date is not read."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


class LocalJudge:
    """A language model, or a vision-language model, that runs here.

    At temperature 0 decoding is greedy. Above it the model's distribution is sampled whole, as endpoints do, seeded
    with the prompt: the same prompt at the same temperature has the same reply.

    Args:
        name: Folder or Hub name of the model.
        device: Where it runs; the accelerator if there is one.
        dtype: Data type of the weights; the checkpoint's if not given.
        seed: For sampling.
    """

    def __init__(self, name: str, *, device: str | None = None, dtype: str = "auto", seed: int = 0) -> None:
        self.name, self.seed = name, seed
        self._sees = type(AutoConfig.from_pretrained(name)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        kind = AutoModelForImageTextToText if self._sees else AutoModelForCausalLM
        device = device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
        self._model = kind.from_pretrained(name, dtype=dtype).to(device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(name)

    def __call__(
        self, prompt: str, *, system: str | None = None, temperature: float = 0.0, max_tokens: int = 1024
    ) -> str:
        """See [`Judge`]."""
        inputs = self._encoded(prompt, system).to(self._model.device)
        length, limit = inputs["input_ids"].shape[1], self._tokenizer.model_max_length
        if length + max_tokens > limit:
            raise RefusedPromptError(f"{self.name}: {length} tokens and {max_tokens} of the reply are over {limit}")
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        if temperature > 0:
            how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        device = self._model.device
        kind, devices = ("cuda", []) if device.type == "cpu" else (device.type, [device])
        with torch.inference_mode(), torch.random.fork_rng(devices, device_type=kind):
            torch.manual_seed(self._drawn_from(prompt, system, temperature))
            output = self._model.generate(
                **inputs,
                **how,
                num_beams=1,
                max_new_tokens=max_tokens,
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
            )
        return str(self._tokenizer.decode(output[0, length:], skip_special_tokens=True))

    def _encoded(self, prompt: str, system: str | None) -> Any:
        joined = prompt if system is None else f"{system}\n\n{prompt}"
        if self._tokenizer.chat_template is None:
            return self._tokenizer(joined, return_tensors="pt", return_token_type_ids=False)
        try:
            return self._templated(_chat(prompt, system))
        except TemplateError:  # some templates know no system message
            if system is None:
                raise
            return self._templated(_chat(joined, None))

    def _templated(self, chat: list[dict[str, Any]]) -> Any:
        if self._sees:  # templates of models that see take parts
            chat = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
        return self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def _drawn_from(self, *parts: Any) -> int:
        return int.from_bytes(hashlib.sha256(json.dumps([self.seed, *parts]).encode()).digest()[:7], "big")


def open_judge(spec: str, *, device: str | None = None, dtype: str = "auto") -> Judge:
    """Open a judge by what a user writes.

    Args:
        spec: `https://host/v1#model` for an OpenAI-compatible endpoint, `openai:model` for OpenAI's own, or a folder
            or Hub name for a model that runs here. The key of an endpoint is taken from `OPENAI_API_KEY`.
        device: Of a model that runs here.
        dtype: Of a model that runs here.

    Raises:
        ValueError: An endpoint has no model, OpenAI's no key, or there is no such model.
    """
    if spec.startswith("openai:"):
        if not os.environ.get(KEY_VARIABLE):
            raise ValueError(f"{spec}: no key. Set {KEY_VARIABLE} in the environment.")
        return EndpointJudge(OPENAI, spec.removeprefix("openai:"))
    if spec.startswith(("http://", "https://")):
        url, model = urldefrag(spec)
        if not model:
            raise ValueError(f"{spec}: which model? Write it as {url}#model.")
        return EndpointJudge(url, model)
    try:
        return LocalJudge(spec, device=device, dtype=dtype)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"judge {spec}: no endpoint, and no language model that can be loaded: {said}") from error
