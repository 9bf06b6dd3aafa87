"""An index as a data set repository of the Hub."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import load_dataset
from huggingface_hub import HfApi
from index_tools import FakeEmbedder, make, state, texts

from sugar_hf.retrieval import DamagedIndexError, SugarIndex
from sugar_hf.retrieval import index_hub as hub
from sugar_hf.retrieval.store import read_current

QUIET = {"show_progress": False}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """What is uploaded lies in a folder, and is downloaded from it."""
    folder, calls = tmp_path / "repository", []

    def create_repo(self, repo_id, **options):
        calls.append((repo_id, options))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, folder_path, **options):
        calls.append((self.token, options))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folder_path, folder)
        return SimpleNamespace(commit_url="https://huggingface.co/commit")

    def snapshot_download(repo_id, local_dir, allow_patterns, **options):
        calls.append((repo_id, options))
        for path in folder.rglob("*"):
            name = path.relative_to(folder)
            if path.is_file() and any(name.match(pattern) for pattern in allow_patterns):
                (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, Path(local_dir) / name)
        return str(local_dir)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return SimpleNamespace(folder=folder, calls=calls)


@pytest.fixture
def index(tmp_path):
    options = {"backend_options": {"kind": "hnsw", "m": 2, "ef_search": 1}}
    return SugarIndex.build(tmp_path / "index", map(make, range(20)), FakeEmbedder(), **options, **QUIET)


CARD = """---
license: apache-2.0
size_categories: n<1K
tags:
- sugar
- multimodal-retrieval
- image
- text
configs:
- config_name: default
  data_files:
  - split: train
    path:
    - segments/000000.arrow
---

# stories

Drawn stories.

20 interleaved documents of images and texts, with 20 embeddings of 16 dimensions (float32) made by
`fake`.

## Use

```python
from sugar_hf.retrieval import SugarEmbedder, SugarIndex

index = SugarIndex.from_hub("me/stories", SugarEmbedder.from_pretrained("fake"))
index.search("a red cat", top_k=5)
```

`datasets.load_dataset("me/stories")` gives the documents alone.
"""


def test_push_and_pull(index, repository, tmp_path):
    address = index.push_to_hub(
        "stories", description="Drawn stories.", card_data={"license": "apache-2.0"}, private=True, token="t"
    )
    assert address == "https://huggingface.co/commit"
    names = sorted(path.relative_to(repository.folder).as_posix() for path in repository.folder.rglob("*.*"))
    segment = ["segments/000000-words.safetensors", "segments/000000.arrow", "segments/000000.safetensors"]
    assert names == ["README.md", "manifest-000001.json", *segment]
    assert (repository.folder / "README.md").read_text() == CARD
    (repo, created), (token, uploaded) = repository.calls
    assert (repo, created["repo_type"], created["private"], token) == ("stories", "dataset", True, "t")
    assert (uploaded["repo_id"], uploaded["repo_type"]) == ("me/stories", "dataset")
    assert "segments/*.arrow" in uploaded["delete_patterns"]
    pulled = SugarIndex.from_hub("me/stories", FakeEmbedder(), folder=tmp_path / "pulled", revision="v1")
    assert repository.calls[-1] == ("me/stories", {"repo_type": "dataset", "revision": "v1", "token": None})
    assert state(pulled) == state(index)
    assert pulled.search("document 3, third", 1)[0].id == "d3"
    pulled.add([make(50)], **QUIET)  # it is mine now
    assert len(SugarIndex.load(tmp_path / "pulled")) == 21
    assert sorted(path.name for path in index.folder.iterdir()) == [
        "CURRENT",
        "LOCK",
        "LOCK.owner",
        "graph-000001",
        "manifest-000000.json",
        "manifest-000001.json",
        "segments",
    ]


def test_the_cache_is_the_default_place(index, repository, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "cached_assets_path", lambda name, namespace, subfolder: tmp_path / namespace / subfolder)
    index.push_to_hub("stories")
    assert SugarIndex.from_hub("me/stories").folder == tmp_path / "me/stories/main"


def test_deleted_documents_are_not_uploaded(index, repository):
    index.delete("d7")
    index.push_to_hub("stories")
    data = b"".join(path.read_bytes() for path in repository.folder.rglob("*") if path.is_file())
    assert b"document 8, second" in data
    assert b"document 7, second" not in data


def test_the_documents_can_be_loaded_as_a_data_set(index, repository, tmp_path):
    index.push_to_hub("stories")
    rows = load_dataset(str(repository.folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert rows["id"] == [f"d{i}" for i in range(20)]
    assert [part["text"] for part in rows[3]["messages"][0]["content"]] == texts(make(3))
    assert json.loads(rows[3]["metadata"]) == {"number": 3}


def test_what_could_harm_is_not_taken(index, repository, tmp_path):
    index.push_to_hub("stories")
    manifest = read_current(repository.folder)
    for change in ({"graph": index.store.snapshot.manifest.graph}, {"uri": "http://evil.example"}):
        spec = manifest.spec
        if "uri" in change:
            spec = hub.replace(spec, backend="milvus", backend_options=change)
        hub.write_current(repository.folder, hub.replace(manifest, graph=change.get("graph", None), spec=spec))
        with pytest.raises(DamagedIndexError, match="was not written by push_to_hub"):
            SugarIndex.from_hub("me/stories", folder=tmp_path / "pulled")


def test_an_address_of_a_server_is_not_uploaded(index):
    options = {"uri": "http://inside:19530", "collection": "secret", "kind": "flat"}
    snapshot = index.store.snapshot
    spec = hub.replace(snapshot.manifest.spec, backend="milvus", backend_options=options)
    index.store.snapshot = hub.replace(snapshot, manifest=hub.replace(snapshot.manifest, spec=spec))
    folder = hub.export(index.store, index.folder.parent / "exported", "me/x")
    assert read_current(folder).spec.backend_options == {"kind": "flat"}
    assert b"inside" not in (folder / "manifest-000001.json").read_bytes()
