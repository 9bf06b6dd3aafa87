"""Search by words, by words and vectors, and by the vectors of all slices."""

import hashlib
import json
import math
import threading
import unicodedata
import warnings
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from index_tools import FakeEmbedder, make, rewrite, texts, vector
from safetensors.numpy import load_file, save_file

from sugar_hf.data import Document
from sugar_hf.retrieval import DamagedIndexError, SugarIndex
from sugar_hf.retrieval.hits import fuse_ranks
from sugar_hf.retrieval.store import postings
from sugar_hf.retrieval.store.layout import Limits
from sugar_hf.retrieval.store.postings import split_words

QUIET = {"show_progress": False}
WORDS = ["red", "cat", "house", "boat", "sea", "the", "a", "on", "under", "night"]


class SliceEmbedder(FakeEmbedder):
    """Embeds queries at their slices, too."""

    def encode_slices(self, samples, **_):
        return [np.stack([vector(text) for text in ([some] if isinstance(some, str) else some)]) for some in samples]


def draw(count, seed=0):
    """Documents of words, some of which are rare."""
    generator = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(WORDS) + 1)
    return [
        Document(f"d{i}", " ".join(generator.choice(WORDS, generator.integers(1, 30), p=share / share.sum())))
        for i in range(count)
    ]


def bm25(query, documents):
    """Ids and scores by the formula, document by document."""
    counts = {document.id: Counter(" ".join(texts(document)).lower().split()) for document in documents}
    mean = sum(each.total() for each in counts.values()) / len(counts)
    scores = Counter()
    for word in query.split():
        having = [name for name, each in counts.items() if each[word]]
        for name in having:
            f, length = counts[name][word], counts[name].total()
            idf = math.log(1 + (len(counts) - len(having) + 0.5) / (len(having) + 0.5))
            scores[name] += idf * f / (f + 1.2 * (0.25 + 0.75 * length / mean))
    return dict(scores)


def found(index, query, top_k=1000, **options):
    return {hit.id: hit.score for hit in index.search(query, top_k, mode="text", **options)}


def create(folder, documents=(), **options):
    index = SugarIndex.create(folder, FakeEmbedder(**options))
    if documents:
        index.add(documents, **QUIET)
    return index


# ---- Words ----


def test_words():
    assert split_words('title:cat AND "dog*" -x file_name 0x8') == [
        "title",
        "cat",
        "and",
        "dog",
        "x",
        "file",
        "name",
        "0x8",
    ]
    assert split_words("Ça, l’ÉTÉ à Straße ﬁn") == ["ca", "l", "ete", "a", "strasse", "fin"]
    assert split_words(unicodedata.normalize("NFD", "Ça été")) == split_words("Ça été") == ["ca", "ete"]
    assert split_words("हिन्दी में") == ["हिन्दी", "में"]  # marks do not end a word
    assert split_words("黒い猫 cat") == ["黒", "い", "猫", "黒い", "い猫", "cat"]
    assert split_words("パンダ") == split_words("ﾊﾟﾝﾀﾞ") == ["パ", "ン", "ダ", "パン", "ンダ"]
    assert split_words("한국어") == ["한", "국", "어", "한국", "국어"]
    assert split_words("ดีมาก") == ["ดี", "ม", "า", "ก", "ดีม", "มา", "าก"]  # a letter keeps its mark
    assert split_words("…!? ") == split_words("") == []


# ---- BM25 ----


def test_scores_are_those_of_the_formula_whatever_the_segments(tmp_path):
    documents = draw(60)
    whole = create(tmp_path / "whole", documents)
    parts = create(tmp_path / "parts")
    parts.store.limits = Limits(batch_documents=7, segment_documents=7)
    for start in range(0, 60, 20):
        parts.add(documents[start : start + 20], **QUIET)
    assert parts.info()["segments"] == 9
    for query in ("red cat", "night", "the the sea", "under a nowhere"):
        expected = bm25(query, documents)
        assert found(whole, query) == pytest.approx(expected)
        assert found(parts, query) == found(whole, query)
        hits = whole.search(query, 5, mode="text")
        order = sorted(expected, key=lambda name: (-round(expected[name], 9), int(name[1:])))
        assert [hit.id for hit in hits] == order[:5]
        assert [hit.id for hit in parts.search(query, 5, mode="text")] == order[:5]
        assert all(hit.text_score == hit.score and hit.vector_score is None and hit.slice == -1 for hit in hits)


@pytest.mark.filterwarnings("ignore:.*are deleted and still take space")
def test_deleted_and_replaced_documents_do_not_count(tmp_path):
    documents = draw(40)
    index = create(tmp_path / "i", documents)
    index.delete([f"d{i}" for i in range(0, 40, 2)])
    index.update([Document("d1", "a giraffe")], **QUIET)
    left = [Document("d1", "a giraffe"), *documents[3::2]]
    for query in ("red cat", "giraffe", "a"):
        assert found(index, query) == pytest.approx(bm25(query, left))
    before = found(index, "red cat a")
    index.compact()
    assert found(index, "red cat a") == before
    assert found(SugarIndex.load(tmp_path / "i"), "red cat a") == before


def test_filters_titles_and_roles(tmp_path):
    chat = [{"role": "system", "content": "secretword"}, {"role": "user", "content": "a question of cats"}]
    documents = [
        Document("page", "something", {"title": "The Manual", "n": 1}),
        Document("chat", chat, {"n": 2}),
        Document("other", "cats and more cats", {"n": 3, "title": 7, "note": "manual"}),
    ]
    index = create(tmp_path / "i")
    index.add(documents, [vector(name) for name in "abc"])
    assert list(found(index, "manual")) == ["page"]
    assert found(index, "secretword") == {}
    assert list(found(index, "cats")) == ["other", "chat"]
    alone = found(index, "cats", where={"n": {"$lt": 3}})
    assert alone == {"chat": found(index, "cats")["chat"]}
    query = [{"role": "system", "content": "manual"}, {"role": "user", "content": "cats"}]
    assert list(found(index, query)) == ["other", "chat"]


def test_equal_scores_come_in_the_order_of_adding(tmp_path):
    index = create(tmp_path / "i", [Document(f"d{i}", "one word") for i in range(30)])
    assert list(found(index, "word", top_k=7)) == [f"d{i}" for i in range(7)]


def test_a_text_search_needs_words_but_no_model(tmp_path):
    create(tmp_path / "i", draw(5))
    index = SugarIndex.load(tmp_path / "i")
    assert found(index, "a")
    hits = index.search(["a", "red"], 2, mode="text", return_vectors=True)
    assert hits[0][0].vector == pytest.approx(vector(texts(hits[0][0].document)[0]))
    with pytest.raises(ValueError, match=r"query 1 has no words.*mode='vector' or 'hybrid'"):
        index.search(["a", "?!"], mode="text")
    with pytest.raises(ValueError, match="opened without a model"):
        index.search("a", mode="hybrid")
    with pytest.raises(ValueError, match="mode='words'"):
        index.search("a", mode="words")
    with pytest.raises(ValueError, match="top_k=0"):
        index.search("a", 0, mode="text")


def test_an_empty_index_finds_nothing(tmp_path):
    index = create(tmp_path / "i")
    assert index.search("a", mode="text") == index.search("a", mode="hybrid") == []


# ---- Both ----


def test_ranks_are_fused(tmp_path):
    documents = draw(50)
    index = create(tmp_path / "i", documents)
    query = texts(documents[4])[0]
    by_vector = [hit.id for hit in index.search(query, 100)]
    by_text = [hit.id for hit in index.search(query, 100, mode="text")]
    expected = Counter()
    for ranking in (by_vector, by_text):
        expected.update({name: 1 / (60 + rank) for rank, name in enumerate(ranking, start=1)})
    hits = index.search(query, 20, mode="hybrid", return_vectors=True)
    assert {hit.id: hit.score for hit in hits} == pytest.approx(dict(expected.most_common(20)))
    assert hits[0].id == "d4"
    assert hits[0].score == pytest.approx(2 / 61)
    for hit in hits:
        assert hit.vector_score == pytest.approx(float(vector(query) @ hit.vector), abs=1e-6)
        assert hit.text_score == found(index, query).get(hit.id)


def test_a_hybrid_search_of_slices(tmp_path):
    documents = [make(i, f"w{i} all") for i in range(300)]
    index = create(tmp_path / "i", documents, positions="all")
    hits = index.search("w7", 10, mode="hybrid")
    by_text = next(hit for hit in hits if hit.id == "d7")  # not among the first vectors
    best = max(range(3), key=lambda at: float(vector("w7") @ vector(texts(documents[7])[at])))
    assert by_text.slice == best
    assert by_text.vector_score == pytest.approx(float(vector("w7") @ vector(texts(documents[7])[best])), abs=1e-6)
    assert len({hit.id for hit in hits}) == 10
    index.delete("d7")
    assert "d7" not in {hit.id for hit in index.search("w7", 10, mode="hybrid")}
    assert {hit.id for hit in index.search("w8", 10, mode="hybrid", where={"number": 8})} == {"d8"}


def test_a_hybrid_search_without_words_is_one_of_vectors(tmp_path):
    index = create(tmp_path / "i", draw(20))
    hits = index.search("?!", 20, mode="hybrid")
    assert [hit.id for hit in hits] == [hit.id for hit in index.search("?!", 20)]
    assert [hit.score for hit in hits] == [1 / (60 + rank) for rank in range(1, 21)]


def test_ties_of_ranks():
    assert [number for number, _ in fuse_ranks([[1, 2], [3, 4]])] == [1, 3, 2, 4]
    assert fuse_ranks([]) == []


# ---- Late interaction ----


def test_late_interaction(tmp_path):
    index = SugarIndex.create(tmp_path / "i", SliceEmbedder(positions="all"))
    index.add([Document("one", ["x", "y", "z"]), Document("two", ["x", "w"]), Document("three", ["q"])], **QUIET)
    query = {"query": ["y", "x"]}
    hits = index.search(query, 3, late_interaction=3)
    cosine = vector("x") @ np.stack([vector("x"), vector("w")]).T, vector("y") @ vector("w"), vector("y") @ vector("x")
    assert [hits[0].id, hits[0].score] == ["one", pytest.approx(1.0)]
    two = next(hit for hit in hits if hit.id == "two")
    assert two.score == pytest.approx((cosine[0].max() + max(cosine[1:])) / 2, abs=1e-6)
    assert two.vector_score == pytest.approx(1.0)
    assert [hit.id for hit in index.search(query, 1, late_interaction=3)] == ["one"]
    assert index.search("nothing", 1, mode="hybrid", late_interaction=2)
    with pytest.raises(ValueError, match="less than top_k"):
        index.search(query, 3, late_interaction=2)
    with pytest.raises(ValueError, match="late_interaction=50 compares slices"):
        create(tmp_path / "last").search("x", late_interaction=50)


# ---- Files ----


def test_an_index_of_an_older_version(tmp_path):
    documents = draw(30)
    index = create(tmp_path / "i", documents)
    before = found(index, "red cat")

    def without(segments):
        return [{key: value for key, value in entry.items() if key != "words"} for entry in segments]

    rewrite(tmp_path / "i", segments=without)
    (tmp_path / "i" / "segments" / "000000-words.safetensors").unlink()
    old = SugarIndex.load(tmp_path / "i", FakeEmbedder())
    assert old.search("d", 3)
    with pytest.warns(UserWarning, match=r"30 documents .* compact\(\)"):
        assert found(old, "red cat") == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(old, "red cat") == before  # once for each opening
        old.compact()
        assert found(SugarIndex.load(tmp_path / "i"), "red cat") == before


def test_words_that_another_version_made_are_made_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("sugar_hf.retrieval.store.index_writer.WORDS_VERSION", "0")
        index = create(tmp_path / "i", draw(10))
    with pytest.warns(UserWarning, match=r"compact\(\)"):
        assert found(index, "red cat") == pytest.approx(bm25("red cat", draw(10)))


def changed(name, change):
    def apply(tensors):
        tensors[name] = change(tensors[name].copy())

    return apply


def put(place, value):
    def change(values):
        values[place] = value
        return values

    return change


WRONG = {
    "a document that there is not": changed("documents", put(-1, 10)),
    "a document below 0": changed("documents", put(0, -1)),
    "a word past the end": changed("word_ends", put(-1, 10**6)),
    "words that do not ascend": changed("word_ends", put(0, 9)),
    "documents past the end": changed("posting_ends", put(-1, 10**6)),
    "documents that do not ascend": changed("documents", lambda values: values[::-1]),
    "fewer lengths": changed("lengths", lambda values: values[:-1]),
    "a length of 0": changed("lengths", lambda values: values * 0),
    "a length below 0": changed("lengths", put(0, -5)),
    "another type": changed("times", lambda values: values.astype(np.int64)),
    "another form": changed("times", lambda values: values[None]),
    "fewer times": changed("times", lambda values: values[:-1]),
    "a word never": changed("times", put(0, 0)),
    "a tensor missing": lambda tensors: tensors.pop("lengths"),
    "fewer words": changed("word_ends", lambda values: np.delete(values, 0)),
}


def test_words_that_fit_their_digest_and_nothing_else(tmp_path, subtests):
    create(tmp_path / "i", draw(10))
    path = tmp_path / "i" / "segments" / "000000-words.safetensors"
    whole = load_file(path)
    for kind, change in WRONG.items():
        with subtests.test(kind=kind):
            tensors = {name: values.copy() for name, values in whole.items()}
            change(tensors)
            tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
            save_file(tensors, path, metadata={"version": postings.VERSION})
            data = path.read_bytes()
            entry = {"name": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            rewrite(tmp_path / "i", segments=lambda entries, entry=entry: [{**entries[0], "words": entry}])
            opened = SugarIndex.load(tmp_path / "i", FakeEmbedder())
            assert len(opened.search("x")) == 10
            with pytest.raises(DamagedIndexError, match=f"{path.name}.*(Restore|build)"):
                opened.search("red", mode="text")


def test_readers_keep_their_words_while_a_writer_commits(tmp_path):
    documents = draw(30)
    writer = create(tmp_path / "i", documents[:20])
    reader = SugarIndex.load(tmp_path / "i")
    expected = bm25("red cat", documents[:20])
    writer.add(documents[20:], **QUIET)
    writer.compact()
    writer.compact()  # the files of the reader are gone
    assert found(reader, "red cat") == pytest.approx(expected)
    assert reader.refresh()
    assert found(reader, "red cat") == pytest.approx(bm25("red cat", documents))


def test_searches_in_threads(tmp_path):
    documents = draw(60)
    index = create(tmp_path / "i", documents[:50])
    states = [bm25("red cat", documents[:50]), bm25("red cat", documents)]
    wrong = []

    def search():
        for _ in range(30):
            hits = found(index, "red cat")
            if not any(hits == pytest.approx(state) for state in states):
                wrong.append(hits)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    index.add(documents[50:], **QUIET)
    for thread in threads:
        thread.join()
    assert not wrong
    assert found(index, "red cat") == pytest.approx(states[1])


def test_a_word_may_be_there_very_often():
    row = {"id": "a", "messages": [{"role": "document", "content": [{"type": "text", "text": "x " * 70000}]}]}
    batch = pa.RecordBatch.from_pylist([{**row, "metadata": json.dumps({})}])
    made = postings.Postings.of([batch])
    assert (made.times.tolist(), made.lengths.tolist()) == ([65535], [70000])
