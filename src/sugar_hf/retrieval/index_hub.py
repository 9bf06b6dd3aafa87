"""Indexes on the Hugging Face Hub, as data set repositories."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock
from huggingface_hub import DatasetCardData, HfApi, cached_assets_path, snapshot_download

from ..model.model_card import in_code, in_line, without_html
from .store import (
    DamagedIndexError,
    IndexStore,
    Manifest,
    open_writer,
    read_current,
    read_settled,
    write_current,
)

_FILES = ["CURRENT", "manifest-*.json", "deleted-*.safetensors", "segments/*.arrow", "segments/*.safetensors"]
_CARD = """---
{metadata}
---

# {name}

{description}

{documents} interleaved documents of images and texts, with {rows} embeddings of {dim} dimensions ({vectors}) made by
{model}.

## Use

```python
from sugar_hf.retrieval import SugarEmbedder, SugarIndex

index = SugarIndex.from_hub("{repo}", SugarEmbedder.from_pretrained("{model_name}"))
index.search("a red cat", top_k=5)
```

`datasets.load_dataset("{repo}")` gives the documents alone.
"""


def push(
    store: IndexStore,
    repo_id: str,
    *,
    description: str = "",
    card_data: dict[str, Any] | None = None,
    commit_message: str = "Upload Sugar index",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload the documents and vectors of an index in one commit; what an earlier upload left is removed.

    Deleted documents are still in the files of an index, so that one with deleted documents is compacted first.

    Args:
        store: The store of the index.
        repo_id: `user/index`; made if it is not there.
        description: A paragraph for the card.
        card_data: Further metadata of the card (`license`, `language`, ...).
        commit_message: Message of the commit.
        private: Make a new repository private.
        token: Access token; the one that was logged in with when `None`.
        revision: Branch.
        create_pr: Open a pull request instead.

    Returns:
        The address of the commit.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    with held_folder(store.folder if os.access(store.folder, os.W_OK) else None) as place:
        folder = read_settled(store.folder, lambda: _export_current(store, place, repo_id, description, card_data))
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=_FILES,
        )
    return commit.commit_url


def _export_current(
    store: IndexStore, place: Path, name: str, description: str, card_data: dict[str, Any] | None
) -> Path:
    """Write the newest snapshot, without deleted documents."""
    store.refresh()
    if len(store.snapshot.deleted):
        with open_writer(store) as writer:
            writer.compact()
    shutil.rmtree(place / "whole", ignore_errors=True)  # of a try that came in between two writes
    return export(store, place / "whole", name, description, card_data)


def export(
    store: IndexStore, folder: Path, name: str, description: str = "", card_data: dict[str, Any] | None = None
) -> Path:
    """Write what is uploaded: the snapshot and a card. What a backend saved is made anew where it is used.

    Args:
        store: The store of the index.
        folder: Where to.
        name: Name of the repository.
        description: A paragraph for the card.
        card_data: Further metadata of the card.

    Returns:
        The folder.
    """
    manifest = store.snapshot.manifest
    (folder / "segments").mkdir(parents=True)
    for entry in manifest.segments:
        for path in entry.check(store.folder, verify=True):
            _copy(path, folder / "segments" / path.name)
    # whoever downloads it has no access to the server that searched it here
    options = {key: value for key, value in manifest.spec.backend_options.items() if key not in ("uri", "collection")}
    write_current(folder, replace(manifest, graph=None, spec=replace(manifest.spec, backend_options=options)))
    (folder / "README.md").write_text(_card(manifest, name, description, card_data or {}), encoding="utf-8")
    return folder


def pull(
    repo_id: str,
    folder: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Download an index.

    Args:
        repo_id: `user/index`.
        folder: Where to; a folder in the cache of the Hub when `None`.
        revision: Branch, tag or commit.
        token: Access token; the one that was logged in with when `None`.

    Returns:
        The folder, whose index is yours to search and to change.

    Raises:
        DamagedIndexError: The repository holds no index that `push` wrote.
    """
    if folder is None:
        folder = cached_assets_path("sugar_hf", namespace=repo_id, subfolder=revision or "main")
    folder = Path(
        snapshot_download(
            repo_id,
            repo_type="dataset",
            revision=revision,
            token=token,
            local_dir=folder,
            allow_patterns=_FILES,
        )
    )
    manifest = read_settled(folder, lambda: read_current(folder))
    if manifest.graph is not None or "uri" in manifest.spec.backend_options:
        # FAISS reads graphs without checking them, and a server would be sent this user's token
        raise DamagedIndexError(
            f"{repo_id} was not written by push_to_hub: it comes with a graph or the address of a server. If you "
            "trust it, download it and use SugarIndex.load."
        )
    return folder


@contextmanager
def held_folder(place: Path | None) -> Iterator[Path]:
    """Make a folder for the time of a block. If the process is killed, the next write of the index removes it.

    Args:
        place: The folder of the index, on whose disk it is to be; another temporary place when `None`.
    """
    with TemporaryDirectory(prefix="export-", suffix=".tmp", dir=place) as name, FileLock(Path(name) / "LOCK"):
        inner = Path(name) / "files"
        inner.mkdir()
        yield inner


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _card(manifest: Manifest, repo_id: str, description: str, card_data: dict[str, Any]) -> str:
    spec = manifest.spec
    data = {
        "tags": ["sugar", "multimodal-retrieval", "image", "text"],
        "size_categories": _size(manifest.documents),
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": [f"segments/{entry.texts.name}" for entry in manifest.segments]}
                ],
            }
        ],
        **card_data,
    }
    model = in_code((spec.settings or {}).get("model") or "")
    text = _CARD.format(
        metadata=DatasetCardData(**data).to_yaml().strip(),
        name=in_line(repo_id.split("/")[-1]),
        repo=in_code(repo_id),
        description=without_html(description),
        documents=manifest.documents,
        rows=manifest.rows,
        dim=spec.dim,
        vectors=spec.vectors,
        model=f"`{model}`" if model else "a model without a name",
        model_name=model or "sugar",
    )
    return text.replace("\n\n\n", "\n\n")


def _size(count: int) -> str:
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
    return next((name for power, name in enumerate(names, start=3) if count < 10**power), "n>100M")
