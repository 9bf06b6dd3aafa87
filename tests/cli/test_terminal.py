"""Queries that begin with a dash, and texts from elsewhere that a terminal would obey."""

import json
from types import SimpleNamespace

import pytest
from builders import picture

from sugar_cli import explain_command as explain_command
from sugar_cli import search_command as search_command
from sugar_cli.ask_command import _streamer
from sugar_cli.output import emit, say, show, visible
from sugar_hf.data import Document
from sugar_hf.retrieval import Hit, SugarIndex

EVIL = "\x1b]0;owned\x07 \x9b2J \u202e\u2066bidi \u2028next \u2029page \x85 \x00\x7f \ufeff\u200b"
BAD_ID = "a\u202eb\u2028c"


class Index:
    """Finds the same for every query, and keeps the queries."""

    def __init__(self, text="a text"):
        self.asked = []
        self.deleted = []
        document = Document("one", text)
        self.hits = [Hit("one", 0.5, -1, document)]

    def search(self, queries, top_k, **options):
        self.asked += queries
        return [self.hits for _ in queries]

    def delete(self, ids=None, where=None):
        self.deleted += ids
        return len(ids)

    def __len__(self):
        return 3

    def explain(self, query, hit, **options):
        return f"query {query} {EVIL}"


@pytest.fixture
def index(monkeypatch):
    opened = Index(f"a {EVIL} text")
    for module in (search_command, explain_command):
        monkeypatch.setattr(module, "open_index", lambda *args: opened)
    monkeypatch.setattr(SugarIndex, "load", classmethod(lambda cls, *args, **options: opened))
    return opened


def test_a_query_may_begin_with_a_dash(cli, index, subtests):
    for arguments, query in [
        (["-5 degrees"], ["-5 degrees"]),
        (["-5"], ["-5"]),
        (["-5°", "--top-k", "3"], ["-5°"]),
        (["--top-k", "3", "- a list", "-- and more"], ["- a list", "-- and more"]),
        (["-", "a"], ["-", "a"]),
        (["-x = 3"], ["-x = 3"]),
        (["a", "--", "--json"], ["a", "--json"]),
        (["--json", "--", "-b"], ["-b"]),
        (["—5", "−5"], ["—5", "−5"]),
        (["-0.5", "--where", '{"a": -1}', "-1e3"], ["-0.5", "-1e3"]),
    ]:
        with subtests.test(query=str(query)):
            found = cli("search", "an.index", *arguments)
            assert (found.code, found.err) == (0, "")
            assert index.asked.pop() == query
            assert not index.asked


@pytest.mark.parametrize("wrong", ["--topk", "-k", "--top_k=3", "--JSON"])
def test_a_mistyped_option_is_no_query(cli, index, wrong):
    found = cli("search", "an.index", "a", wrong)
    assert found.code == 2
    assert "No such option" in found.err
    assert not index.asked


def test_images_keep_their_places(cli, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-5.png", "b.png"):
        picture(0).save(tmp_path / name)
    assert cli("search", "an.index", "-1", "--image", "-5.png", "--top-k", "2", "-2", "--image=b.png").code == 0
    assert [str(part) for part in index.asked[0]] == ["-1", "-5.png", "-2", "b.png"]


def test_an_id_may_begin_with_a_dash(cli, index):
    assert cli("index", "delete", "an.index", "-5", "- x", "b").code == 0
    assert index.deleted == ["-5", "- x", "b"]


def unseen(text):
    return [c for c in text if c not in "\n\t" and not c.isprintable()]


def test_texts_of_documents_do_not_steer_the_terminal(cli, index):
    for arguments in ([], ["--json"]):
        found = cli("search", "an.index", "a", *arguments)
        assert found.code == 0
        assert not unseen(found.out), ascii(found.out)
        assert found.out.count("\n") == 1
    assert json.loads(found.out)[0]["text"] == f"a {EVIL} text"
    found = cli("explain", "an.index", "a")
    assert "\\x1b]0;owned\\x07" in found.out
    assert "\\u202e" in found.out
    assert not unseen(found.out)


def test_errors_do_not_steer_the_terminal(cli, tmp_path):
    found = cli("embed", tmp_path / "\x1b[2Jgone\u202e")
    assert found.code == 1
    assert not unseen(found.err)
    assert "gone" in found.err


def test_whatever_is_written(capsys):
    for write in (show, say):
        write(f"one\ntwo\t{EVIL}{BAD_ID}\ud800")
    written = capsys.readouterr()
    for text in (written.out, written.err):
        assert not unseen(text)
        assert text.startswith("one\ntwo\t\\x1b]0;owned\\x07 \\u009b2J \\u202e\\u2066bidi \\u2028next \\u2029page")
        assert text.rstrip().endswith("a\\u202eb\\u2028c\\ud800")
    value = {"id": BAD_ID, "text": EVIL + "\U000e0001", "half": "\ud800"}
    emit(value)
    text = capsys.readouterr().out
    assert not unseen(text)
    assert json.loads(text) == value
    assert json.loads(text.encode("utf-8")) == value


def test_words_of_the_world_stay_as_they_are():
    for text in ("żółć 日本語 עברית العربية हिन्दी", "👩‍👩‍👧 é \u200c", "a\nb\tc", "\u00a0"):
        assert visible(text) == text


def test_streamed_words(capsys):
    streamer = _streamer(SimpleNamespace(processor=SimpleNamespace(tokenizer=None)))
    streamer.on_finalized_text("a\x1b[2J ")
    streamer.on_finalized_text("b", stream_end=True)
    assert capsys.readouterr().out == "a\\x1b[2J b\n"
