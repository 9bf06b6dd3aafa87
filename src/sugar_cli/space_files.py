"""Spaces: a page on the Hub on which visitors chat with a model, search an index and get answers from it."""

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, SpaceCardData

from sugar_hf.model.model_card import in_line, is_hub_name, linked, without_html

APP = Path(__file__).with_name("space_app.py")
#: The release of Gradio that the page was tried with, and the newest Pillow that it takes.
GRADIO, PILLOW = "6.31.0", "pillow>=11.3,<13"
PYTHON = "3.12"  # ZeroGPU has this one; the package needs 3.11
_EXAMPLES = ("What is in the picture?",)
_README = """---
{metadata}
---

# {title}

{description}

Chat with {model}{searched}. The page is made by `sugar-hf space`.
To run it elsewhere: `pip install -r requirements.txt "gradio=={gradio}"`, then `python app.py`.
"""


def write_space(
    folder: str | Path,
    model: str,
    index: str | None = None,
    *,
    title: str | None = None,
    description: str = "",
    examples: Sequence[str] = (),
    hardware: str | None = "zero-a10g",
    package: str | None = None,
    top_k: int = 6,
    max_new_tokens: int = 128,
) -> Path:
    """Write the files of a Space.

    Args:
        folder: Where to; made if it is not there. Files of the same names are replaced.
        model: Hub name of the model; a folder for trying the page out here.
        index: Hub name of an index, which the page searches and answers from; a folder likewise.
        title: Title of the page; the model's name when `None`.
        description: A paragraph for the page.
        examples: Questions that visitors can pick; texts of the index when there are none.
        hardware: What the Space asks for; `None` to ask for nothing.
        package: What pip installs for `sugar-hf`: a version, an address, a wheel. This version when `None`.
        top_k: How many documents are found.
        max_new_tokens: The longest answer.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    title = in_line(title or Path(model).name)
    model, index = _place(model), index and _place(index)
    description = without_html(description)
    given = list(examples) or ([] if index else list(_EXAMPLES))
    settings = {
        "title": title,
        "description": description,
        "model": model,
        "index": index,
        "examples": given,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
    }
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file="app.py",
        suggested_hardware=hardware,
        models=[model] if is_hub_name(model) else None,
        datasets=[index] if index and is_hub_name(index) else None,
        tags=["sugar", "multimodal-retrieval", "image-text-to-text"],
        emoji="🍬",
        colorFrom="pink",
        colorTo="blue",
        short_description="Chat, search and answers by one model",
    )
    searched = f", search {linked(index, 'datasets/')}, and get answers from it" if index else ""
    readme = _README.format(
        metadata=data.to_yaml().strip(),
        title=title,
        description=description,
        model=linked(model),
        searched=searched,
        gradio=GRADIO,
    )
    requirement = package or f"sugar-hf=={version('sugar-hf')}"
    (folder / "README.md").write_text(readme.replace("\n\n\n", "\n"), encoding="utf-8")
    (folder / "requirements.txt").write_text(
        f"{requirement}\n# Gradio {GRADIO} takes no newer one\n{PILLOW}\n", encoding="utf-8"
    )
    (folder / "space.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(APP, folder / "app.py")
    return folder


def _place(name: str) -> str:
    """A folder by its whole name, as the page may be started elsewhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def push_space(
    folder: str | Path, repo_id: str, *, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Upload the files of a Space, from [`write_space`].

    Args:
        folder: Where they are.
        repo_id: `user/space`; made if it is not there.
        private: Make a new Space private.
        token: Access token; the one that was logged in with when `None`.

    Returns:
        The address of the commit.

    Raises:
        ValueError: The model or the index is a folder, which the Space cannot reach.
    """
    folder = Path(folder)
    settings: dict[str, Any] = json.loads((folder / "space.json").read_text(encoding="utf-8"))
    for key, command in (("model", "push_to_hub of the model"), ("index", "sugar-hf index push")):
        name = settings[key]
        if name is not None and not is_hub_name(name):
            raise ValueError(
                f"{key}={name!r} is no name on the Hub, where the Space looks for it: use {command} first."
            )
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True).repo_id
    names = ["README.md", "app.py", "requirements.txt", "space.json"]
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="space",
        folder_path=folder,
        allow_patterns=names,
        commit_message="Upload Sugar Space",
    )
    return commit.commit_url
