"""A Hub in a folder, for tests: what is uploaded lies in it, file by file, and is loaded or downloaded from it."""

import fnmatch
import shutil
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects

from sugar_hf.model.checkpoint_sugar import CODE_FILES

#: What a repository of a tiny model holds, so that it works without the package.
MODEL_FILES = {
    *CODE_FILES,
    "README.md",
    "chat_template.jinja",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "model.safetensors",
    "modules.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


class FakeHub:
    """Repositories as folders, and the commits as they came: message, options, files."""

    def __init__(self, root: Path) -> None:
        self.root, self.commits, self.created = root, [], []

    def folder(self, repo_id: str) -> Path:
        return self.root / repo_id

    def files(self, repo_id: str) -> set[str]:
        folder = self.folder(repo_id)
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    def create_repo(self, repo_id: str, **options):
        assert options["exist_ok"]
        repo_id = repo_id if "/" in repo_id else f"me/{repo_id}"
        self.created.append((repo_id, options))
        self.folder(repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(
        self,
        *,
        repo_id,
        folder_path,
        path_in_repo="",
        ignore_patterns=None,
        allow_patterns=None,
        delete_patterns=None,
        run_as_future=False,
        **options,
    ):
        target, source = self.folder(repo_id), Path(folder_path)
        for pattern in delete_patterns or ():
            for name in self.files(repo_id):
                if fnmatch.fnmatch(name, pattern):
                    (target / name).unlink()
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        sent = list(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        for name in sent:
            place = target / path_in_repo / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, place)
        self.commits.append({"repo_id": repo_id, "path": path_in_repo, "files": set(sent), **options})
        commit = SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/{len(self.commits)}")
        if not run_as_future:
            return commit
        job = Future()
        job.set_result(commit)
        return job


def put_in_place(monkeypatch, root: Path) -> FakeHub:
    """Replace the Hub until the test ends."""
    hub = FakeHub(root)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: hub.create_repo(repo_id, **options))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: hub.upload_folder(**options))
    monkeypatch.setattr(HfApi, "list_repo_files", lambda self, repo_id, **options: sorted(hub.files(repo_id)))
    return hub
