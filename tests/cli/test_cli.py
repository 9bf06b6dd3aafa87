"""How the program starts and ends, and the commands that need no index."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from signals import heed_ctrl_c

from sugar_cli import main
from sugar_cli.app import app
from sugar_cli.loading import read_queries, read_sources
from sugar_cli.options import IMAGE_MARK
from sugar_hf import picturebook
from sugar_hf.data import as_document
from sugar_hf.retrieval.embedder import SugarEmbedder

COMMANDS = [
    ["search"],
    ["ask"],
    ["explain"],
    ["mine"],
    ["embed"],
    ["export"],
    ["evaluate"],
    ["report"],
    ["serve"],
    ["space"],
    *(["index", name] for name in ("build", "add", "delete", "info", "compact", "push")),
]


def test_help_comes_before_torch(process):
    code = (
        "import sys; sys.argv[0] = 'sugar-hf'; from sugar_cli import main\n"
        "try: main(['--help'])\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sugar-hf index build" in done.stdout
    assert done.stderr == "False False\n"
    assert process("--help").code == 0


def test_every_command_has_help_with_an_example(cli, subtests):
    for command in COMMANDS:
        with subtests.test(command=f"{command!r:.60}"):
            found = cli(*command, "--help")
            assert found.code == 0
            assert f"\n    sugar-hf {' '.join(command)} " in found.out
            assert found.err == ""


def test_every_command_is_in_the_table_above():
    names = [[command.name or command.callback.__name__] for command in app.registered_commands]
    assert sorted(names) == sorted([["train"], *(command for command in COMMANDS if len(command) == 1)])


def test_help_of_train_lists_its_options(cli):
    found = cli("train", "--help")
    assert found.code == 0
    assert found.out.startswith("usage: sugar-hf train [RECIPE.yaml] [options]")
    assert "--label_kernel" in found.out


def test_version(cli):
    found = cli("--version")
    assert (found.code, found.err) == (0, "")
    assert found.out.strip().count(".") == 2


def test_wrong_commands_end_with_2(cli, subtests):
    for command in [
        ["embed"],
        ["nonsense"],
        ["embed", "x", "--positions", "first"],
        ["embed", "x", "--output", "x.csv"],
        ["search", "x"],
        ["search", "x", "a", "--query-file", "q.json"],
        ["search", "x", "a", "--where", "{"],
        ["search", "x", "a", "--where", "[]"],
        ["search", "x", "a", "--top-k", "0"],
        ["index", "delete", "x"],
        ["index", "delete", "x", "id", "--where", "{}"],
        ["index", "build", "x", "y", "--backend-options", "{"],
        ["train"],
    ]:
        with subtests.test(command=f"{command!r:.60}"):
            found = cli(*command)
            assert found.code == 2
            assert found.out == ""
            assert "rror" in found.err
            assert "Traceback" not in found.err


def test_errors_are_one_line_and_end_with_1(cli, tmp_path):
    for command, message in [
        (["embed", tmp_path / "none"], "Error: no file or folder '"),
        (["embed", "picturebook:nowhere"], "Error: no split 'nowhere'"),
        (["embed", "picturebook:test?length=3"], "no option length; there are size and seed"),
        (["embed", "picturebook:test?size=x"], "Write picturebook:test/story?size=100&seed=1"),
        (["export", tmp_path / "none", "--output", tmp_path / "out"], "none"),
    ]:
        found = cli(*command)
        assert found.code == 1
        assert found.out == ""
        assert message in found.err
        assert found.err.count("\n") == 1
    with pytest.raises(FileNotFoundError):
        main(["--debug", "embed", str(tmp_path / "none")])


def test_embed_writes_lines(cli, album, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no ./sugar
    found = cli("embed", album, "--batch-size", "2")
    assert found.code == 0
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert [line["id"] for line in lines] == ["note.md", "a.png", "b.jpg", "sea/c.png"]
    assert "mini-sugar (no --model given)" in found.err
    embedder = SugarEmbedder.from_pretrained(picturebook.checkpoint("mini-sugar"))
    wanted = embedder.encode([album / "a.png", [album / "sea" / "c.png", "a boat on the sea."]])
    np.testing.assert_allclose([lines[1]["embedding"], lines[3]["embedding"]], wanted, atol=1e-5)


def test_embed_writes_a_file_for_numpy(cli, album, tmp_path):
    options = ["--positions", "all", "--truncate-dim", "8", "--model", picturebook.checkpoint("mini-sugar")]
    found = cli("embed", album / "sea", "picturebook:test/story?size=2", "--output", tmp_path / "x.npz", *options)
    assert (found.code, found.out) == (0, "")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays["ids"][:3].tolist() == ["c.png", "c.png", "test-story-0-0"]
        assert arrays["slices"][:4].tolist() == [0, 1, 0, 1]
        assert arrays["embeddings"].shape == (len(arrays["ids"]), 8)


def test_embed_names_what_it_skips(cli, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "fine", "text": "a"}\n{"text": ""}\n{"id": "bad", "image": "bad.png"}\n')
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = cli("embed", tmp_path / "x.jsonl")
    assert found.code == 1
    assert "x.jsonl:2" in found.err
    assert "With --on-error skip" in found.err
    found = cli("embed", tmp_path / "x.jsonl", "--on-error", "skip")
    assert found.code == 0
    assert [json.loads(line)["id"] for line in found.out.splitlines()] == ["fine"]
    assert "x.jsonl:2" in found.err
    assert "sample 'bad'" in found.err


def test_sources_of_all_kinds_are_read_in_order(album):
    options = {"text_field": None, "id_field": None, "image_root": None, "captions": False, "on_error": "raise"}
    found = read_sources(["picturebook:test/story?size=1&seed=3", str(album)], skipped=[], **options)
    [row] = picturebook.load("test", kind="story", size=1, seed=3)
    documents = list(found)
    assert documents[0].digest == as_document(row, 0).digest
    assert [document.id for document in documents[1:]] == ["note.md", "a.png", "b.jpg", "sea/c.png", "sea/c.txt"]


def test_queries_keep_their_order(album, tmp_path, monkeypatch):
    from sugar_cli import search_command as search

    seen = []
    monkeypatch.setattr(search, "read_queries", lambda parts, file: seen.append(parts) or sys.exit(7))
    image = str(album / "a.png")
    for command, wanted in [
        (["a", "--image", image, "b"], ["a", IMAGE_MARK + image, "b"]),
        ([f"--image={image}", "--top-k", "3", "b"], [IMAGE_MARK + image, "b"]),
        (["--json", "a", "--", "--image", "b"], ["a", "--image", "b"]),
    ]:
        with pytest.raises(SystemExit, match="7"):
            main(["search", "x.index", *command])
        assert seen[-1] == wanted


def test_query_parts_and_files(album, tmp_path):
    image = album / "a.png"
    assert read_queries(["a", IMAGE_MARK + str(image)], None) == ([["a", image]], False)
    with pytest.raises(FileNotFoundError, match=r"no image 'none.png'"):
        read_queries([IMAGE_MARK + "none.png"], None)
    with pytest.raises(typer.BadParameter):
        read_queries(None, None)
    file = album.parent / "chat.json"
    chat = [{"role": "user", "content": [{"type": "image", "image": "album/a.png"}, {"type": "text", "text": "a"}]}]
    file.write_text(json.dumps(chat))
    [[message]], is_stream = read_queries(None, file)
    assert not is_stream
    assert message["content"] == [{"type": "image", "image": image}, "a"]
    file = album.parent / "queries.jsonl"
    file.write_text('"a"\n{"query": ["b", {"image": "album/a.png"}]}\n')
    queries, is_stream = read_queries(None, file)
    assert is_stream
    assert queries == [["a"], ["b", {"type": "image", "image": image}]]
    file.write_text('["a", {"image": "../../secret.png"}]\n')
    with pytest.raises(ValueError, match=r"query 0\[1\].image: .*outside the image root"):
        read_queries(None, file)
    file.write_text("{\n")
    with pytest.raises(ValueError, match=r"queries.jsonl: query 0 is no JSON"):
        read_queries(None, file)


def test_export_writes_a_card(cli, tmp_path):
    (tmp_path / "figures.json").write_text('{"R@1": 35.0, "data": "picturebook"}')
    options = ["--output", tmp_path / "out", "--name", "you/mini", "--figures", tmp_path / "figures.json"]
    found = cli("export", picturebook.checkpoint("mini-sugar"), *options, "--card", tmp_path / "card.md")
    assert found.code == 0
    card = (tmp_path / "card.md").read_text()
    assert "| R@1 | 35 |" in card
    assert "license: apache-2.0" in card
    assert (tmp_path / "out" / "modeling_sugar.py").is_file()
    (tmp_path / "figures.json").write_text('{"R@1": [1]}')
    assert "R@1 is no number or text" in cli("export", "x", *options).err


def test_a_pipe_that_closes_is_no_error_of_ours(album):
    command = f"{sys.executable} -m sugar_cli embed picturebook:test/words?size=8 | head -n 1 >/dev/null"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130():
    command = [sys.executable, "-m", "sugar_cli", "embed", "picturebook:test/story?size=400", "--batch-size", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c)
    said = b""
    while b"Embedding" not in said:
        said += process.stderr.read(1)
        assert process.poll() is None, said
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "interrupted: what was written so far is whole lines" in err
    assert "Traceback" not in err


def test_the_entry_point_is_declared():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'sugar-hf = "sugar_cli:main"' in text
