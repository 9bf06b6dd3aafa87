"""The files of a Space, and what its page does."""

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from browser import CHROMIUM, Browser
from hub_stand_in import put_in_place
from huggingface_hub import RepoCard, SpaceCardData
from packaging.requirements import Requirement
from PIL import Image

from sugar_cli.space_command import space
from sugar_cli.space_files import APP, GRADIO, push_space, write_space
from sugar_hf import SugarEmbedder, SugarIndex, picturebook
from sugar_hf.data import as_document

MINI = picturebook.checkpoint("mini-sugar")
FILES = ["README.md", "app.py", "requirements.txt", "space.json"]
ROOT = Path(__file__).parents[2]


class Refused(Exception):  # noqa: N818  # stands for gradio.Error
    def __init__(self, message, **options):
        super().__init__(message)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rows = picturebook.load("test", kind="story", size=12, seed=0)
    folder = tmp_path_factory.mktemp("space") / "index"
    documents = [as_document(row, number) for number, row in enumerate(rows)]
    SugarIndex.build(folder, documents, SugarEmbedder.from_pretrained(MINI), show_progress=False)
    return folder


def started(folder, monkeypatch, with_gpu=False):
    """The names of the page's file, run with something in Gradio's place that takes whatever it is given."""
    gradio = MagicMock()
    gradio.Error = Refused
    gradio.utils.get_upload_folder = lambda: str(folder.parent)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setitem(sys.modules, "gradio.utils", gradio.utils)
    lent = MagicMock()
    lent.GPU = lambda function: lent.functions.append(function.__name__) or function
    lent.functions = []
    monkeypatch.setitem(sys.modules, "spaces", lent if with_gpu else None)
    monkeypatch.setenv("SUGAR_HF_URLS", "none")
    return runpy.run_path(str(folder / "app.py")), gradio, lent


def test_the_files_of_a_space(tmp_path):
    folder = write_space(tmp_path / "page", "you/sugar", "you/photos", title="My <b>", description="A *page*.")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    card = RepoCard.load(folder / "README.md", repo_type="space")
    card.card_data_class = SpaceCardData
    data = card.data.to_dict()
    assert data["sdk"] == "gradio"
    assert data["sdk_version"] == GRADIO
    assert data["app_file"] == "app.py"
    assert data["python_version"] == "3.12"
    assert data["suggested_hardware"] == "zero-a10g"
    assert (data["models"], data["datasets"]) == (["you/sugar"], ["you/photos"])
    assert len(data["short_description"]) <= 60
    assert "# My &lt;b>\n\nA *page*.\n\nChat with [you/sugar](https://huggingface.co/you/sugar), search" in card.text
    assert (folder / "app.py").read_bytes() == APP.read_bytes()
    compile((folder / "app.py").read_text(), "app.py", "exec")


def test_the_requirements_are_within_the_bounds_of_the_package(tmp_path):
    folder = write_space(
        tmp_path, "you/sugar", package="sugar-hf @ https://example.org/sugar_hf-0.1.0-py3-none-any.whl"
    )
    lines = [line for line in (folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    package, pillow = map(Requirement, lines)
    assert package.url == "https://example.org/sugar_hf-0.1.0-py3-none-any.whl"
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ours = next(Requirement(each) for each in bounds if each.startswith("pillow"))
    both = ours.specifier & pillow.specifier
    assert both.contains("12.3.0")
    assert not both.contains("13.0.0")  # which Gradio does not take
    lines = (write_space(tmp_path, "you/sugar") / "requirements.txt").read_text().splitlines()
    assert lines[0] == "sugar-hf==0.1.0"


def test_the_page_searches_answers_and_chats(tmp_path, index, monkeypatch):
    page, gradio, lent = started(write_space(tmp_path / "page", str(MINI), str(index)), monkeypatch, with_gpu=True)
    assert lent.functions == ["chat", "search", "answer", "compare"]
    text = page["shown"](SugarIndex.load(index).documents[3])[0].split(".")[0]
    rows, pictures = page["search"](text, None)
    expected = SugarIndex.load(index, SugarEmbedder.from_pretrained(MINI)).search(text, 6)
    assert [row[2] for row in rows] == [hit.id for hit in expected]
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(image, Image.Image) and re.match(r"\d\. -?0\.\d\d", caption) for image, caption in pictures)
    told, rows, _ = page["answer"](text, Image.new("RGB", (32, 32), "red"))
    assert isinstance(told, str)
    assert len(rows) == 6
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    said = page["chat"]({"text": "what colour is the picture?", "files": [str(tmp_path / "a.png")]}, [])
    assert said == "red"
    history = [  # as Gradio 6 has it
        {"role": "user", "content": [{"type": "file", "file": {"path": str(tmp_path / "a.png")}}]},
        {"role": "user", "content": [{"type": "text", "text": "what colour is the picture?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": said}]},
    ]
    assert isinstance(page["chat"]({"text": "and now?", "files": []}, history), str)
    assert [call.args[0] for call in gradio.Button.call_args_list] == ["Search", "Answer"]
    assert len(page["examples"]()) == 3


def test_without_an_index_the_page_compares(tmp_path, monkeypatch):
    page, gradio, _ = started(write_space(tmp_path / "page", str(MINI)), monkeypatch)
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    rows, pictures = page["compare"]("a red thing", None, "a dog\n\n a cat ", [(red, None), (blue, "caption")])
    assert sorted(row[3] for row in rows) == ["a cat", "a dog", "a picture", "a picture"]
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
    assert len(pictures) == 2
    assert gradio.Button.call_args_list[0].args[0] == "Compare"
    assert page["examples"]() == ["What is in the picture?"]


def test_visitors_are_told_what_is_wrong(tmp_path, monkeypatch):
    page, *_ = started(write_space(tmp_path / "page", str(MINI)), monkeypatch)
    with pytest.raises(Refused, match="Write something"):
        page["compare"](" ", None, "a dog", None)
    with pytest.raises(Refused, match="Give some words"):
        page["compare"]("a dog", None, None, None)
    with pytest.raises(Refused, match="Write something"):
        page["chat"]({"text": "", "files": []}, [])
    with pytest.raises(Refused, match="characters"):
        page["compare"]("a" * 20_001, None, "a dog", None)
    for forged in ("/etc/passwd", str(tmp_path / ".." / ".." / "a.png")):
        with pytest.raises(Refused, match="Upload the picture"):
            page["chat"]({"text": "what?", "files": []}, [{"role": "user", "content": {"path": forged}}])
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(Refused, match=r"no\.png|image"):
        page["chat"]({"text": "what?", "files": [str(tmp_path / "no.png")]}, [])


def test_a_space_is_pushed_alone_and_with_names_of_the_hub(tmp_path, monkeypatch, capsys):
    hub = put_in_place(monkeypatch, tmp_path / "hub")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "secret.txt").write_text("mine")
    space(tmp_path / "page", model="you/sugar", hardware="cpu-basic", push="you/page", top_k=3, max_new_tokens=8)
    assert "uploaded: https://huggingface.co/you/page/commit/1" in capsys.readouterr().err
    assert hub.files("you/page") == set(FILES)
    assert hub.created == [
        ("you/page", {"repo_type": "space", "space_sdk": "gradio", "private": None, "exist_ok": True})
    ]
    for model, made_with in ((str(MINI), None), ("you/sugar", str(tmp_path))):
        write_space(tmp_path / "page", model, made_with)
        with pytest.raises(ValueError, match="is no name on the Hub"):
            push_space(tmp_path / "page", "you/page")


# ---- The real Gradio ----


@pytest.fixture
def served(tmp_path, index):
    """The page of a Space on the real Gradio, in the environment that `make test-space` makes."""
    python = os.environ.get("SUGAR_SPACE_PYTHON")
    if python is None:
        pytest.skip("make test-space runs it: Gradio takes no Pillow as new as the pin")
    folder = write_space(tmp_path / "page", str(MINI), str(index), title="Sugar mini")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    log = open(tmp_path / "log", "w")  # noqa: SIM115  # the process writes to it until the test ends
    process = subprocess.Popen([python, "app.py"], cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        log.close()


@pytest.mark.slow
def test_the_page_in_a_browser(served, tmp_path):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    page = Browser(tmp_path / "chromium")
    try:
        page.open(served)
        page.wait("document.querySelector('#search')")
        page.wait("document.querySelector('#words textarea')")
        page.evaluate("document.querySelector('#search').click()")
        page.wait("document.body.innerText.includes('Write something, or give a picture.')")
        page.evaluate("document.querySelector('#words textarea').focus()")
        page.write("a red boat")
        page.evaluate("document.querySelector('#search').click()")
        page.wait("document.body.innerText.includes('test-story')")
        page.evaluate("document.querySelector('#answer').click()")
        page.wait("document.querySelector('#told textarea').value")
        Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
        page.choose("#message input[type=file]", tmp_path / "red.png")
        page.wait("document.querySelector('#message img')")
        page.evaluate("document.querySelector('#message textarea').focus()")
        page.write("what colour is the picture?")
        page.press("Enter", text="\r")
        page.wait("[...document.querySelectorAll('#chat .bot')].some((said) => said.innerText.includes('red'))")
        page.screenshot(tmp_path / "page.png")
        assert page.complaints() == []
    finally:
        page.close()
