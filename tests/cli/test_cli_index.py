"""`sugar-hf index` and `search` on folders and files as users have them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from builders import cached_sugar, picture
from signals import heed_ctrl_c

from sugar_cli.search_command import snippet
from sugar_hf import SugarForConditionalGeneration, SugarProcessor, picturebook
from sugar_hf.retrieval.index import SugarIndex

MODEL = picturebook.checkpoint("mini-sugar")


@pytest.fixture(scope="session")
def stories(tmp_path_factory, process):
    """An index of the picturebook's stories, at all of their slices, made by a process of its own."""
    folder = tmp_path_factory.mktemp("cli") / "stories.index"
    made = process(
        "index", "build", folder, "picturebook:test/story?size=20", "--positions", "all", "--json", "--model", MODEL
    )
    assert made.code == 0, made.err
    assert made.out.count("\n") == 1
    assert json.loads(made.out)["documents"] == 20
    return folder


def ids(result):
    return [hit["id"] for hit in json.loads(result.out)]


def test_search_gives_json(cli, stories):
    found = cli("search", stories, "a dog is in the garden.", "--top-k", "3", "--json")
    assert found.code == 0
    hits = json.loads(found.out)
    assert [set(hit) for hit in hits] == [{"id", "score", "slice", "text", "images", "metadata"}] * 3
    assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    assert hits[0]["metadata"]["kind"] == "story"
    assert f"model: {MODEL} (recorded in the index)" in found.err


def test_search_for_words(cli, stories):
    found = cli("search", stories, "WOOD, the snake!", "--top-k", "3", "--mode", "text", "--json")
    hits = json.loads(found.out)
    assert len(hits) == 3
    assert "wood" in hits[0]["text"]
    assert [hit["vector_score"] for hit in hits] == [None] * 3
    assert [hit["score"] for hit in hits] == [hit["text_score"] for hit in hits]
    assert "model:" not in found.err
    both = cli("search", stories, "a dog is in the garden.", "--mode", "hybrid", "--late-interaction", "20", "--json")
    assert all(hit["score"] <= 1 and hit["vector_score"] is not None for hit in json.loads(both.out))
    wordless = cli("search", stories, "?", "--mode", "text")
    assert (wordless.code, wordless.out) == (1, "")
    assert "no words" in wordless.err


def test_a_snippet_shows_the_words(cli, stories):
    found = cli("search", stories, "WOOD, the snake!", "--top-k", "3", "--mode", "text")
    first, *_ = found.out.splitlines()
    assert "[5 images]  …is a large wood in the middle. a small snake appears" in first
    filler = " ".join(f"filler{k}" for k in range(40))
    text = f"The start. {filler} A Café alone. {filler} the café, and its garden. {filler}"
    shown = snippet(text, {"cafe", "garden"})
    assert "the café, and its garden." in shown
    assert (shown[:7], shown[-1], len(shown) <= 100) == ("…filler", "…", True)
    for words in (set(), {"nowhere"}, {"start"}, {"start", "filler3"}):
        assert snippet(text, words) == text[:99] + "…"
    end = snippet(text + " at last", {"last"})
    assert end.startswith("…filler")
    assert end.endswith(" filler39 at last")
    assert 80 < len(end) <= 100
    assert snippet("a short café", {"cafe"}) == "a short café"
    assert "黒猫" in snippet("本" * 300 + "黒猫" + "本" * 300, {"黒", "猫", "黒猫"})


def test_search_for_people(cli, stories):
    found = cli("search", stories, "a dog is in the garden.", "--top-k", "2")
    lines = found.out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(" 1. 0.")
    assert "(up to slice " in lines[0]
    assert " images]" in lines[0]
    assert max(map(len, lines)) < 180


def test_a_story_finds_itself_with_its_texts_and_images_in_order(cli, stories, tmp_path):
    document = SugarIndex.load(stories).get("test-story-0-4")
    command = []
    for i, part in enumerate(document.load()):
        if isinstance(part, str):
            command.append(part)
        else:
            part.save(tmp_path / f"{i}.png")
            command += ["--image", tmp_path / f"{i}.png"]
    found = cli("search", stories, *command, "--top-k", "1", "--json")
    [hit] = json.loads(found.out)
    assert (hit["id"], hit["slice"]) == ("test-story-0-4", len(document.load()) - 1)
    assert hit["score"] > 0.999


def test_filters_and_query_files(cli, stories, tmp_path):
    everything = cli("search", stories, "a dog", "--where", '{"kind": "story"}', "--json")
    assert len(ids(everything)) == 10
    assert ids(cli("search", stories, "a dog", "--where", '{"kind": {"$ne": "story"}}', "--json")) == []
    assert "nothing found" in cli("search", stories, "a dog", "--where", '{"kind": "words"}').err
    wrong = cli("search", stories, "a dog", "--where", '{"kind": {"$like": "s"}}')
    assert (wrong.code, wrong.out) == (1, "")
    assert "$like" in wrong.err
    (tmp_path / "q.jsonl").write_text('"a dog"\n{"query": ["a cat", "a house"]}\n')
    judged = cli("search", stories, "--query-file", tmp_path / "q.jsonl", "--top-k", "2", "--rerank", "3")
    assert [json.loads(line)["query"] for line in judged.out.splitlines()] == [0, 1]
    stream = cli("search", stories, "--query-file", tmp_path / "q.jsonl", "--top-k", "2")
    lines = [json.loads(line) for line in stream.out.splitlines()]
    assert [line["query"] for line in lines] == [0, 1]
    assert [hit["id"] for hit in lines[0]["results"]] == ids(everything)[:2]
    (tmp_path / "chat.json").write_text('[{"role": "user", "content": "a dog"}]')
    assert len(ids(cli("search", stories, "--query-file", tmp_path / "chat.json", "--json"))) == 10


@pytest.mark.filterwarnings("ignore:.*of the documents in .* are deleted")  # what the command passes on
def test_a_life_of_an_index_of_photographs(cli, album, tmp_path):
    folder = tmp_path / "photos.index"
    options = ["--model", MODEL]
    made = cli("index", "build", folder, album, *options)
    assert (made.code, made.out) == (0, "")
    assert "4 documents in" in made.err
    again = cli("index", "build", folder, album, *options)
    assert again.code == 1
    assert "--overwrite" in again.err
    (album.parent / "new.jsonl").write_text(
        '{"id": "note.md", "text": "a cat.", "year": 2001}\n{"id": "x", "image": "album/a.png", "text": "a"}\n'
    )
    new = album.parent / "new.jsonl"
    twice = cli("index", "add", folder, new)
    assert twice.code == 1
    assert "note.md" in twice.err
    added = cli("index", "add", folder, new, "--on-duplicate", "update", "--json")
    assert added.code == 0, added.err
    report = json.loads(added.out)
    assert (report["added"], report["updated"], report["documents"]) == (1, 1, 5)
    found = cli("search", folder, "--image", album / "b.jpg", "--top-k", "1", "--json")
    assert ids(found) == ["b.jpg"]
    assert ids(cli("search", folder, "a cat.", "--where", '{"year": {"$gte": 2000}}', "--json")) == ["note.md"]
    gone = cli("index", "delete", folder, "a.png", "b.jpg", "--json")
    assert json.loads(gone.out) == {"deleted": 2, "documents": 3}
    missing = cli("index", "delete", folder, "nothing")
    assert missing.code == 1
    assert "'nothing'" in missing.err
    assert json.loads(cli("index", "delete", folder, "--where", '{"year": 2001}', "--json").out)["deleted"] == 1
    assert cli("index", "compact", folder).code == 0
    told = json.loads(cli("index", "info", folder, "--json").out)
    assert told["documents"] == 2
    assert told["model"] == MODEL
    assert "documents: 2\n" in cli("index", "info", folder).out
    replaced = cli("index", "build", folder, album / "note.md", "--overwrite", "--json", *options)
    assert json.loads(replaced.out)["documents"] == 1


def test_what_is_no_index_and_another_model(cli, stories, tmp_path):
    for command in (["search", tmp_path, "a"], ["index", "info", tmp_path], ["index", "delete", tmp_path, "a"]):
        found = cli(*command)
        assert found.code == 1
        assert str(tmp_path) in found.err
        assert found.err.count("\n") == 1
    vlm = cli("search", stories, "a", "--model", tmp_path / "none")
    assert vlm.code == 1
    model, processor = cached_sugar("llava")
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    other = cli("search", stories, "a", "--model", tmp_path / "other")
    assert other.code == 1
    assert "16" in other.err
    assert "128" in other.err


def test_a_recorded_model_that_moved_is_asked_for(cli, album, tmp_path):
    (tmp_path / "here").mkdir()
    SugarForConditionalGeneration.from_pretrained(MODEL).save_pretrained(tmp_path / "here")
    SugarProcessor.from_pretrained(MODEL).save_pretrained(tmp_path / "here")
    assert cli("index", "build", tmp_path / "x.index", album, "--model", tmp_path / "here").code == 0
    (tmp_path / "here").rename(tmp_path / "there")
    found = cli("search", tmp_path / "x.index", "a")
    assert found.code == 1
    assert "say where it is with --model" in found.err
    assert cli("search", tmp_path / "x.index", "a", "--model", tmp_path / "there").code == 0


def test_push_uploads_a_data_set(cli, stories, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        SugarIndex, "push_to_hub", lambda self, repo, **options: pushed.append((repo, options)) or "url"
    )
    found = cli("index", "push", stories, "you/stories", "--private", "--json")
    assert json.loads(found.out) == {"repository": "you/stories", "commit": "url"}
    assert pushed == [("you/stories", {"private": True})]


@pytest.mark.slow
def test_ctrl_c_leaves_a_valid_index_that_goes_on(process, tmp_path):
    folder = tmp_path / "x.index"
    command = ["index", "build", folder, "picturebook:test/story?size=150", "--model", MODEL]
    command += ["--batch-size", "1", "--part-documents", "10"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "sugar_cli", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=heed_ctrl_c,
    )
    start = time.monotonic()
    while len(list(folder.glob("pending/part-*.safetensors"))) < 2:
        assert running.poll() is None
        assert time.monotonic() - start < 300, "it hangs"
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 130, err
    assert "interrupted: the index is as it was" in err
    assert "goes on" in err
    assert "Traceback" not in err
    assert len(SugarIndex.load(folder)) == 0
    assert len(list(folder.glob("pending/part-*.safetensors"))) >= 2  # kept for the next try
    done = process(*command[:-4], "--batch-size", "8", "--part-documents", "10", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["documents"] == 150
    assert len(SugarIndex.load(folder)) == 150


def test_images_of_a_query_are_only_read(cli, stories, tmp_path):
    picture(0).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert cli("search", stories, "--image", tmp_path / "a.png", "--json").code == 0
    assert (tmp_path / "a.png").read_bytes() == before
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = cli("search", stories, "--image", tmp_path / "bad.png")
    assert found.code == 1
    assert "bad.png" in found.err
    assert found.err.count("\n") == 2  # the model, the error


def test_a_folder_of_pages(cli, tmp_path):
    pytest.importorskip("lxml")
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "a.html").write_text(f"<h1 id=cats>Cats</h1><p>{'a cat. ' * 20}<p>{'a dog. ' * 20}")
    (tmp_path / "guide" / "b.md").write_text("# Boats\n\na boat.")
    options = ["--positions", "all", "--section-length", "200", "--model", MODEL]
    made = cli("index", "build", tmp_path / "guide.index", tmp_path / "guide", *options)
    assert made.code == 0, made.err
    found = cli("search", tmp_path / "guide.index", "Boats", "--json")
    assert sorted(ids(found)) == ["a.html#cats", "a.html#cats-part-2", "b.md#boats"]
    [first, *_] = json.loads(found.out)
    assert (first["id"], first["slice"]) == ("b.md#boats", 0)
    wrong = cli("index", "build", tmp_path / "no.index", tmp_path / "guide", "--section-length", "2", "--model", MODEL)
    assert (wrong.code, wrong.out) == (1, "")
    assert "section_length=2" in wrong.err
