"""What marks free answers: a language model behind an endpoint, or one that runs here."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Judge(Protocol):
    """Answers prompts of a marking scheme."""

    name: str

    def __call__(
        self, prompt: str, *, system: str | None = None, temperature: float = 0.0, max_tokens: int = 1024
    ) -> str:
        """Answer one prompt."""
