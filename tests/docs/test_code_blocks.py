"""Every block of code in README.md and docs/ runs as typed, on small models and files in the place of those it names.

Python is run block after block, as somebody would type a document from its beginning. A block of text right behind one
is what it prints. Commands of this program are run too; others are read: every option and every file of the repository
that they name has to be there. A block below a comment `<!-- not run: why -->` is read only; `NOT_RUN` below lists
them, so that none joins them unseen.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from builders import picture
from hub_stand_in import put_in_place
from serving_tools import running

from sugar_cli import main
from sugar_cli.app import app
from sugar_cli.train_command import ScriptArguments
from sugar_hf import picturebook
from sugar_hf.evaluation.benchmarks.tasks import all_tasks
from sugar_hf.retrieval import SugarEmbedder, SugarIndex
from sugar_hf.serving import Engine
from sugar_hf.training import SugarTrainingArguments
from sugar_lab.budget import BUDGETS
from sugar_lab.stages import Lab

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]*?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>[\w{}]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.M | re.S,
)

# The models of the package in the place of those of the Hub.
TWINS = {
    "sugar": "mini-sugar",
    "path/to/sugar": "mini-sugar",
    "llava-hf/llava-1.5-7b-hf": "mini-vlm",
    "openai/clip-vit-large-patch14": "mini-clip",
    "facebook/dinov2-base": "mini-dino",
    "BAAI/bge-base-en-v1.5": "mini-bert",
}
SMALLER = [("size=400", "size=10")]  # what a command is given less of here
# Commands that are read but not run here.
ONLY_READ = {
    "train": "the data are downloaded; test_recipes.py runs each recipe on data of its own",
    "evaluate": "the data are downloaded; tests/evaluation runs each task on files of the official form",
    "report": "of what evaluate gives; test_report.py",
    "serve": "runs until it is stopped; tests/serving",
    "lab": "takes hours; test_lab_runner.py",
}
SERVER = "127.0.0.1:8000"  # in documents; the tests have another port
MESSAGE = re.compile("“([^”]+)”")
NOT_RUN = {
    "docs/harnesses.md": {
        "the data sets are downloaded; tests/evaluation/test_mteb.py runs such a task on data of its own"
    },
}
PROGRAM: Any = typer.main.get_command(app)
TRAIN_OPTIONS = {field.name for kind in (ScriptArguments, SugarTrainingArguments) for field in fields(kind)}


@dataclass
class Block:
    document: str
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    document = path.relative_to(ROOT).as_posix()
    assert len(BLOCK.findall(text)) * 2 == len(re.findall(r"^ *```", text, re.M)), f"{document}: a block has no end"
    return [
        Block(
            document,
            text.count("\n", 0, found.start("code")),
            found["language"],
            textwrap.dedent(found["code"]),
            found["reason"],
        )
        for found in BLOCK.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """The commands of a block for the shell, as lists of words."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


ALL = [block for path in DOCUMENTS for block in blocks(path)]
SHELL = [block for block in ALL if block.language == "bash"]


def test_the_blocks_that_are_not_run_are_these():
    found: dict[str, set[str]] = {}
    for block in ALL:
        if block.reason is not None:
            found.setdefault(block.document, set()).add(block.reason)
    assert found == NOT_RUN


def test_every_block_has_a_language_that_is_known_here():
    assert {block.language for block in ALL} <= {"python", "bash", "yaml", "json", "text", "{toctree}"}


@cache
def lab_names() -> set[str]:
    lab = Lab(BUDGETS["small"], Path("runs"), kept=Path("kept"))
    return {*lab.rows, *lab.twins()}


def read_ours(words: list[str]) -> None:
    """A command of this program: there is such a command, and it has these options."""
    name, rest = words[1], words[2:]
    options = [word.split("=")[0] for word in rest if word.startswith("--")]
    if name == "train":
        assert {option[2:] for option in options} <= TRAIN_OPTIONS
        assert not [word for word in rest if word.startswith("examples/") and not (ROOT / word).exists()]
        return
    command: Any = PROGRAM.commands[name]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(options) <= known, f"{name} has no {set(options) - known}"
    values = dict(pairwise(rest))
    if "--task" in values:
        assert set(values["--task"].split(",")) <= set(all_tasks())
    if "--only" in values:
        row, twin = values["--only"].split("/")
        assert row in lab_names()
        assert twin in lab_names()


def read_make(words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def read_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"sugar-hf\[([\w,]+)\]", " ".join(words)):
        assert set(named.split(",")) <= set(extras)


def read_python(words: list[str]) -> None:
    """`python FILE`, `python -m MODULE` or `torchrun ... FILE`: what it names of the repository is there."""
    for word in words[1:]:
        if re.match(r"(examples|benchmarks|tests|src)/", word):
            assert (ROOT / word).exists(), word
    source = (ROOT / words[1]).read_text() if words[1].endswith(".py") else ""
    missing = [word for word in words if source and word.startswith("--") and f'"{word}"' not in source]
    assert not missing, f"{words[1]} has no {missing}"


def read_curl(words: list[str]) -> None:
    """Where it sends what it sends is a route of the server; `test_a_document_as_typed` runs it."""
    assert [word for word in words if word.startswith(f"http://{SERVER}/v1/")]


def read_elsewhere(words: list[str]) -> None:
    """A program of others, which is not here: a document says where it was only read of."""
    assert words[0] not in PROGRAM.commands


READERS = {
    "sugar-hf": read_ours,
    "curl": read_curl,
    "make": read_make,
    "pip": read_pip,
    "python": read_python,
    "torchrun": read_python,
    "vllm": read_elsewhere,
}


def test_commands_and_their_options_are_there(subtests):
    for block in SHELL:
        with subtests.test(block=f"{block!r:.60}"):
            for words in commands(block):
                READERS[words[0]](words)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the reader sits: models, pictures and files under the names of the documents."""
    for name, twin in TWINS.items():
        shutil.copytree(picturebook.checkpoint(twin), tmp_path / name)
    for i, name in enumerate(["a.png", "b.png", "cat.jpg", "harbour.jpg", "tower.jpg", "images/a.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(i).save(tmp_path / name)
    for i, name in enumerate(["cat.jpg", "sea/a.png", "sea/b.png"]):
        (tmp_path / "Photos" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(10 + i).save(tmp_path / "Photos" / name)
    (tmp_path / "Photos" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "more", "document": ["a cat."], "year": 2004}) + "\n")
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red house."}]
    rows = [{"id": str(i), "image": "a.png", "conversations": turns} for i in range(3)]
    (tmp_path / "llava_v1_5_mix.json").write_text(json.dumps(rows))
    (tmp_path / "manual").mkdir()
    page = "<title>The guide</title><p>Hello.<h1>Start</h1><h2 id=install>Install</h2><p>Unpack it."
    (tmp_path / "manual" / "guide.html").write_text(page)
    picture(13).save(tmp_path / "manual" / "poster.pdf")
    (tmp_path / "questions.jsonl").write_text('{"query": "how is it unpacked?"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    put_in_place(monkeypatch, tmp_path / "hub")
    return tmp_path


def given(document: str) -> dict[str, Any]:
    """What a document takes for granted: files and names that its reader has. README takes nothing."""
    photo, other = picture(3), picture(4)
    if document == "docs/backbones.md":
        embedder = SugarEmbedder.from_pretrained("sugar")
        return {"model": embedder.model, "processor": embedder.processor}
    if document == "docs/rag.md":
        embedder = SugarEmbedder.from_pretrained("sugar")
        for name in ("facts.index", "photos.index"):
            SugarIndex.build(name, ["a tower of 1889.", [photo, "a red boat."]], embedder, show_progress=False)
        return {}
    if document == "docs/indexing.md":
        documents = [
            {"id": "sea/a.png", "document": [Path("a.png")], "metadata": {"year": 2004}},
            {"id": "draft", "document": ["a boat."], "metadata": {"kind": "draft", "year": 1999}},
            {"id": "cat", "document": ["a cat.", photo]},
        ]
        more, changed = [{"id": "new", "document": ["a dog."]}], [{"id": "cat", "document": ["a red cat."]}]
        query = "a cat"
        return {"documents": documents, "more": more, "changed": changed, "image": photo, "query": query}
    if document == "docs/sentence_transformers.md":
        return {"photo": photo, "other": other}
    return {}


@contextmanager
def running_server(document: str) -> Iterator[str]:
    """The server that a document takes for granted, and where it is."""
    if document != "docs/serving.md":
        yield SERVER
        return
    embedder = SugarEmbedder.from_pretrained("sugar")
    rows = picturebook.load("test", kind="story", size=12)
    index = SugarIndex.build("served.index", rows, embedder, show_progress=False)
    with running(Engine(embedder, index)) as server:
        yield server.url.removeprefix("http://")


def run_curl(words: list[str], at: str) -> None:
    words = [word.replace(SERVER, at) for word in words]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout), words


def outputs(path: Path) -> dict[int, str]:
    """What a block of Python prints, by the block's line, where the next thing in the document is a block of text."""
    text = path.read_text(encoding="utf-8")
    pairs = re.finditer(
        r"^```python\n(?P<code>(?:(?!```).*\n)*)```\n\n```text\n(?P<text>(?:(?!```).*\n)*)```$", text, re.M
    )
    return {text.count("\n", 0, pair.start("code")): pair["text"] for pair in pairs}


def run_ours(words: list[str]) -> None:
    words = [os.path.expanduser(word) for word in words]
    for large, small in SMALLER:
        words = [word.replace(large, small) for word in words]
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code == 0, shlex.join(words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_as_typed(path, folder, capsys):
    document = path.relative_to(ROOT).as_posix()
    names = {"__name__": "__main__", **given(document)}
    printed = outputs(path)
    with running_server(document) as at:
        for block in blocks(path):
            if block.reason is not None:
                continue
            if block.language == "python":
                # so that a traceback has the document's lines
                code = "\n" * block.line + block.code.replace(SERVER, at)
                capsys.readouterr()
                exec(compile(code, str(path), "exec"), names)
                if block.line in printed:
                    assert capsys.readouterr().out == printed[block.line], block
            elif block.language == "bash":
                for words in commands(block):
                    if words[0] == "sugar-hf" and words[1] not in ONLY_READ:
                        run_ours(words)
                    elif words[0] == "curl":
                        run_curl(words, at)


def texts_of_the_source() -> list[str]:
    """Every text in the library, with … for what is filled in."""
    found = []
    for path in (ROOT / "src" / "sugar_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_of_the_troubleshooting_page_are_those_of_the_source():
    messages = MESSAGE.findall((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    texts = texts_of_the_source()
    assert messages
    assert [message for message in messages if not any(message in text for text in texts)] == []
