"""How models are written: the backbone by its own class, under our prefix, and a folder that is whole or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

CONFIG_FILE = "config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
_SINGLE = "model*.safetensors"
_INDEX = "model.safetensors.index*.json"


@contextmanager
def staged(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder, whose files replace those of the same name in `folder` when the block ends.

    While they are exchanged the folder has no `config.json`, so that nothing loads new weights with an old
    configuration, and weights that are not among the new ones are taken away. If the block fails, or the process dies
    before the exchange, the folder is as it was. Prompts of sentence-transformers that lie there stay.

    Args:
        folder: The folder; made if it is not there.

    Raises:
        NotADirectoryError: If there is a file of that name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".writing-*"):  # of a process that died
        shutil.rmtree(left, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        yield stage
        files = [file.relative_to(stage) for file in stage.rglob("*") if file.is_file()]
        for file in files:
            _flush(stage / file)
        has_config, has_weights = Path(CONFIG_FILE) in files, any(file.match(_SINGLE) for file in files)
        if has_config:
            (folder / CONFIG_FILE).unlink(missing_ok=True)
        if has_weights:
            for old in (*folder.glob(_SINGLE), *folder.glob(_INDEX)):
                old.unlink()
        kept = [file for file in files if file.name == PROMPTS_FILE and (folder / file).exists()]
        for file in sorted(set(files) - set(kept), key=lambda name: name == Path(CONFIG_FILE)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / file, folder / file)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _flush(file: Path) -> None:
    """Have the file's bytes on the disk: a rename that is there before them would show an empty file after a crash."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())


def save_backbone(
    vlm: PreTrainedModel, folder: Path, prefix: str, head: dict[str, Tensor], options: dict[str, Any]
) -> None:
    """Save the backbone as its own class does, then put its weights under the prefix and the head beside them.

    Going by the class's own `save_pretrained` undoes whatever loading did to the weights, quantised or not.

    Args:
        vlm: The backbone.
        folder: An empty folder.
        prefix: What the names of its weights get in front.
        head: Weights that are added under their own names.
        options: Of `PreTrainedModel.save_pretrained`.
    """
    vlm.save_pretrained(folder, **options)
    files = sorted(folder.glob(_SINGLE))
    for file in files:
        with safe_open(file, framework="pt") as opened:  # memory-mapped: a shard is not read into memory
            weights = {prefix + key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # no dict
            metadata = opened.metadata()
        if file == files[-1]:
            weights |= {key: value.detach().cpu().contiguous() for key, value in head.items()}
        renamed = file.with_name(f"{file.name}.renamed")
        save_file(weights, renamed, metadata=metadata)
        del weights
        os.replace(renamed, file)
    for index in folder.glob(_INDEX):
        settings = json.loads(index.read_text(encoding="utf-8"))
        weight_map = {prefix + key: name for key, name in settings["weight_map"].items()}
        settings["weight_map"] = weight_map | dict.fromkeys(head, files[-1].name)
        size = sum(value.numel() * value.element_size() for value in head.values())
        settings["metadata"]["total_size"] = settings["metadata"].get("total_size", 0) + size
        index.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def upload_files(folder: Path, repo_id: str, options: dict[str, Any]) -> None:
    """Upload a folder, with the options of `save_pretrained(push_to_hub=True)`."""
    api = HfApi(token=options.get("token"))
    repo_id = api.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
    known = {key: options[key] for key in ("commit_message", "revision", "create_pr") if key in options}
    api.upload_folder(repo_id=repo_id, folder_path=folder, **known)
