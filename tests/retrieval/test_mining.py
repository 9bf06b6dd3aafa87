"""Hard negatives for pairs, from an index whose documents lie at known angles from the queries."""

import json
import re

import numpy as np
import pytest
from builders import cached_sugar, picture
from index_tools import FakeEmbedder, texts

from sugar_hf import EncoderTeacher, SugarEmbedder
from sugar_hf.data import BadSampleError, Document, load_dataset_file
from sugar_hf.retrieval import IndexMismatchError, SugarIndex
from sugar_hf.retrieval.mining import mine_negatives

QUERY = {"id": "q", "query": "@0 the query", "positives": ["@1 document"]}
WIDE = {"ranks": (1, 50), "show_progress": False}


def angled(mark, text):
    """A unit vector at the angle that stands in a text behind a mark, in degrees."""
    angle = np.deg2rad(float(re.search(mark + r"(\d+)", text)[1]))
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


class Angles(FakeEmbedder):
    """Embeds a text at its angle; stops after some calls."""

    def __init__(self, calls=99, **options):
        super().__init__(dim=2, **options)
        self.calls, self.processor, self.split_sentences = calls, self, False

    def slices(self, sample, split_sentences):
        return sample

    def describe(self):
        return {"weights": self.weights}

    def embed_documents(self, documents, *, skipped=None, progress=None):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        self.embedded += [document.id for document in documents]
        found = []
        for document in documents:
            is_long = "LONG" in texts(document)[-1]
            found.append(None if is_long else angled("@", texts(document)[-1])[None])
            if is_long:
                skipped.append(BadSampleError("it is too long", field="document", sample=document.id))
        return found


class Judge:
    """A teacher that sees the angle behind a #, or else that behind the @."""

    show_progress, widths, device, fingerprint = False, (2, 0, 0), None, "judge=1"

    def embed(self, samples):
        if any("BLURRED" in text for sample in samples for text in sample):
            raise ValueError("blurred")
        return [
            {
                "teacher_clip": np.stack([angled("#" if "#" in text else "@", text) for text in sample]),
                "teacher_dino": np.zeros((len(sample), 0)),
                "teacher_text": np.zeros((len(sample), 0)),
                "teacher_is_image": [False] * len(sample),
                "teacher_fingerprint": self.fingerprint,
            }
            for sample in samples
        ]


def build(folder, documents=None):
    """An index of documents d1 to d40 at 1 to 40 degrees, or of those given by id."""
    documents = {f"d{k}": f"@{k} document" for k in range(1, 41)} if documents is None else documents
    given = [Document(name, text) for name, text in documents.items()]
    return SugarIndex.build(folder, given, Angles(), show_progress=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return build(tmp_path_factory.mktemp("mining") / "index")


def mined(rows, index, output, **options):
    """The negatives of each row, by their texts, and the report."""
    report = mine_negatives(rows, index, output, **{**WIDE, **options})
    return [json.loads(line)["negatives"] for line in output.read_text().splitlines()], report


def angles(negatives):
    return [int(re.search(r"@(\d+)", text)[1]) for text in negatives]


def test_ranks_count_without_positives(index, tmp_path):
    # d1 is the positive: d2 has rank 1
    [negatives], report = mined([QUERY], index, tmp_path / "a.jsonl", ranks=(10, 20), count=3)
    assert angles(negatives) == [11, 12, 13]
    assert (report.rows, report.negatives, report.short, report.left_out) == (1, 3, 0, {"positive": 1})
    [negatives], report = mined([QUERY], index, tmp_path / "b.jsonl", ranks=(35, 45), count=11)
    assert angles(negatives) == [36, 37, 38, 39, 40]  # there are no more
    assert (report.short, report.empty) == (1, 0)
    _, report = mined([QUERY], index, tmp_path / "c.jsonl", ranks=(60, 70))
    assert (report.short, report.empty, report.negatives) == (1, 1, 0)
    assert str(report) == (
        "rows: 1, negatives: 0\nrows with fewer than asked for: 1, of these without any: 1\n"
        "candidates left out, positive: 1"
    )


def test_scores_and_margins(index, tmp_path, subtests):
    cosine = np.cos(np.deg2rad(np.arange(50)))
    cases = {
        "margin": ({"margin": cosine[1] - cosine[20] - 1e-4}, 20, 18),  # that of d1, the positive
        "relative_margin": ({"relative_margin": 0.1}, 26, 24),
        "max_score": ({"max_score": cosine[8] - 1e-4}, 9, 7),
        "min_score": ({"min_score": cosine[3] + 1e-4}, 2, 38),
    }
    for name, (rules, first, left_out) in cases.items():
        with subtests.test(name):
            [negatives], report = mined([QUERY], index, tmp_path / f"{name}.jsonl", count=2, **rules)
            assert angles(negatives)[0] == first
            [rule] = report.left_out.keys() - {"positive"}
            assert name in rule
            assert report.left_out[rule] == left_out


def test_of_several_positives_the_weakest_sets_the_margin(index, tmp_path):
    row = QUERY | {"positives": ["@1 document", "@30 document"]}
    [negatives], report = mined([row], index, tmp_path / "a.jsonl", count=2, margin=0.0)
    assert angles(negatives) == [31, 32]
    assert report.left_out == {"positive": 2, "within margin": 28}


def test_positives_and_copies_are_no_negatives(tmp_path):
    documents = {
        "copy": "@1 document",
        "named": "@2 named",
        "query": "@0 the query",
        "own": "@3 own",
        "first": "@4 found",
        "second": "@4 found",
        "last": "@5 last",
    }
    row = QUERY | {"positive_ids": ["named"], "negatives": ["@3 own"]}
    [negatives], report = mined([row], build(tmp_path / "index", documents), tmp_path / "a.jsonl", count=5)
    assert negatives == ["@3 own", "@4 found", "@5 last"]
    assert report.left_out == {
        "positive": 2,
        "the query itself": 1,
        "copy of a negative of the row": 1,
        "copy of a better candidate": 1,
    }


def test_a_document_that_contains_a_positive_is_no_negative(tmp_path):
    documents = {
        "section": ["The title.", " @1 document\n", "@2 the end"],
        "chat": [{"role": "assistant", "content": "@1 document"}, {"role": "user", "content": "@3 asked"}],
        "halves": ["@1", "document", "@4 halves"],
        "longer": "@1 document, and more",
        "asked": [{"role": "system", "content": "@1 document"}, {"role": "user", "content": "@6 an instruction"}],
        "title": ["The title.", "@7 other"],
    }
    row = QUERY | {"positives": ["@1 document", ["The title.", "@2 the end"]]}
    index = build(tmp_path / "index", documents)
    [negatives], report = mined([row], index, tmp_path / "a.jsonl", count=4, ranks=(1, 4))
    assert negatives[:2] == [documents["longer"], documents["halves"]]
    assert len(negatives) == 4
    assert report.left_out == {"contains a positive": 2}
    index.embedder.split_sentences = True
    row = QUERY | {"positives": ["The title. @2 the end."]}
    documents = {"section": "The title. @1 Between. @2 the end. @3 document", "other": "The title. @2 the end of it."}
    index = build(tmp_path / "sentences", documents)
    index.embedder.split_sentences = True
    [negatives], report = mined([row], index, tmp_path / "b.jsonl", count=1)
    assert negatives == [documents["other"]]
    assert report.left_out == {"contains a positive": 1}


def test_however_many_contain_a_positive_the_ranks_are_filled(tmp_path):
    documents = {f"d{k}": ["yes", f"@{k} document"] for k in range(1, 60)} | {f"n{k}": f"@{k}" for k in range(60, 70)}
    rows = [QUERY | {"positives": ["yes"]}, QUERY | {"positives": ["no"]}]
    index = build(tmp_path / "index", documents)
    [negatives, others], report = mined(rows, index, tmp_path / "a.jsonl", count=3, ranks=(2, 4))
    assert angles(negatives) == [61, 62, 63]
    assert [each[1] for each in others] == ["@2 document", "@3 document", "@4 document"]
    assert report.left_out == {"contains a positive": 59}
    assert report.short == 0


def test_an_image_with_its_captions_contains_the_image(tmp_path):
    for k in range(4):
        picture(k).save(tmp_path / f"{k}.png")
    documents = [Document(f"d{k}", [tmp_path / f"{k}.png", f"picture {k}.", "another caption"]) for k in range(4)]
    embedder = SugarEmbedder(*cached_sugar("llava"))
    index = SugarIndex.build(tmp_path / "index", documents, embedder, show_progress=False)
    row = {"id": "q", "query": "picture 1.", "positives": [{"image": "1.png"}]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    report = mine_negatives(tmp_path / "pairs.jsonl", index, tmp_path / "mined.jsonl", **WIDE)
    assert (report.negatives, report.left_out) == (3, {"contains a positive": 1})
    [mined_row] = load_dataset_file(tmp_path / "mined.jsonl")
    kept = [each["images"][0]["bytes"] for each in mined_row["negatives"]]
    assert sorted(kept) == sorted((tmp_path / f"{k}.png").read_bytes() for k in (0, 2, 3))


def test_positives_may_be_given_by_id_alone(index, tmp_path):
    row = {"id": "q", "query": "@0 the query", "positive_ids": ["d2"]}
    [negatives], _ = mined([row], index, tmp_path / "a.jsonl", count=2)
    assert angles(negatives) == [1, 3]
    assert json.loads((tmp_path / "a.jsonl").read_text())["positives"] == ["@2 document"]


def test_a_teacher_leaves_out_what_may_be_an_answer(tmp_path):
    documents = {
        "d1": "@1 document",
        "like": "@2 #3 alike",
        "far": "@3 #80 other",
        "near": "@4 #20 alike",
        "b": "@5 #70",
    }
    index = build(tmp_path / "index", documents)
    options = {"count": 2, "teacher": Judge(), "teacher_threshold": 0.9, "scores": "teacher"}
    [negatives], report = mined([QUERY], index, tmp_path / "a.jsonl", **options)
    assert negatives == ["@3 #80 other", "@5 #70"]
    assert report.left_out == {"positive": 1, "too alike for the teacher": 2}
    # of the positive, too: the query alone is at 40 degrees from it
    row = QUERY | {"query": "@0 #41 the query"}
    [negatives], _ = mined([row], index, tmp_path / "b.jsonl", **options)
    assert negatives == ["@3 #80 other", "@5 #70"]
    scores = json.loads((tmp_path / "b.jsonl").read_text())["scores"]
    assert scores == pytest.approx(np.cos(np.deg2rad([40, 39, 29])), abs=1e-3)


def test_what_is_drawn_depends_on_the_seed_and_the_row_alone(index, tmp_path):
    rows = [QUERY | {"id": f"q{k}"} for k in range(6)]
    options = {"sampling": "random", "count": 4}
    found, _ = mined(rows, index, tmp_path / "a.jsonl", **options)
    assert len({tuple(each) for each in found}) > 1
    turned, _ = mined(rows[::-1], index, tmp_path / "b.jsonl", part_rows=1, **options)
    assert turned[::-1] == found
    other, _ = mined(rows, index, tmp_path / "c.jsonl", seed=1, **options)
    assert other != found


def test_a_stopped_call_goes_on(index, tmp_path):
    rows = [QUERY | {"id": f"q{k}", "query": f"@{k} the query"} for k in range(7)]
    whole, report = mined(rows, index, tmp_path / "whole.jsonl", part_rows=2)
    output = tmp_path / "a.jsonl"
    stopped = SugarIndex.load(index.folder, Angles(calls=2))
    with pytest.raises(KeyboardInterrupt):
        mined(rows, stopped, output, part_rows=2)
    assert not output.exists()
    resumed = SugarIndex.load(index.folder, embedder := Angles())
    found, again = mined(rows, resumed, output, part_rows=2)
    assert (found, again.counts()) == (whole, report.counts())
    assert embedder.embedded == ["q4 query", "q5 query", "q6 query"]
    assert [path.name for path in tmp_path.glob("a.jsonl*")] == ["a.jsonl"]


def test_parts_of_other_rules_or_rows_are_not_used(index, tmp_path):
    output = tmp_path / "a.jsonl"
    rows = [QUERY | {"id": f"q{k}"} for k in range(3)]
    with pytest.raises(KeyboardInterrupt):
        mined(rows, SugarIndex.load(index.folder, Angles(calls=2)), output, part_rows=1, count=1)
    changed = [rows[0], rows[1] | {"positives": ["@9 document"]}, rows[2]]
    embedder = Angles()
    mined(changed, SugarIndex.load(index.folder, embedder), output, part_rows=1, count=1)
    assert embedder.embedded == ["q1 query", "q2 query"]
    with pytest.raises(KeyboardInterrupt):
        mined(rows, SugarIndex.load(index.folder, Angles(calls=2)), output, part_rows=1, count=1, overwrite=True)
    embedder = Angles()
    mined(rows, SugarIndex.load(index.folder, embedder), output, part_rows=1, count=2, overwrite=True)
    assert len(embedder.embedded) == 3


def test_rows_of_other_tools(index, tmp_path):
    (tmp_path / "pairs.csv").write_text("anchor,positive\n@0 the query,@1 document\n@5 another,@6 document\n")
    found, _ = mined(tmp_path / "pairs.csv", index, tmp_path / "a.jsonl", count=2)
    assert [angles(each) for each in found] == [[2, 3], [5, 4]]
    rows = load_dataset_file(tmp_path / "a.jsonl")
    assert rows[0]["query"]["messages"][0]["content"][0]["text"] == "@0 the query"
    assert len(rows[1]["negatives"]) == 2
    again, _ = mined(rows, index, tmp_path / "b.jsonl", count=2)  # rows that were read before
    assert [angles(each) for each in again] == [[2, 3, 4, 5], [5, 4, 7, 3]]


def test_faults_are_named(index, tmp_path, subtests):
    def run(rows=(QUERY,), **options):
        mined(rows, options.pop("index", index), options.pop("output", tmp_path / "a.jsonl"), **options)

    scored = QUERY | {"scores": [0.3]}
    (tmp_path / "there.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"id": "x", "query": "@0 a"}\n')
    cases = {
        r"bad.jsonl:1.*'x'.*no positive": lambda: run(tmp_path / "bad.jsonl"),
        r"'q'.*positive_ids.*no document 'd99'": lambda: run([QUERY | {"positive_ids": ["d99"]}]),
        r"positive_ids.*expected a list": lambda: run([QUERY | {"positive_ids": "d1"}]),
        r"the row has scores": lambda: run([scored]),
        r"expected an object": lambda: run(["a"]),
        r"opened without a model": lambda: run(index=SugarIndex.load(index.folder)),
        r"made with another model": lambda: run(index=SugarIndex.load(index.folder, Angles(weights="b"))),
        r"is there. Remove it": lambda: run(output=tmp_path / "there.jsonl"),
        r"name with .jsonl": lambda: run(output=tmp_path / "a.csv"),
        r"no pairs to mine": lambda: run([]),
        r"ranks=5-2": lambda: run(ranks=(5, 2)),
        r"count=9.*have 3 documents": lambda: run(ranks=(1, 3), count=9),
        r"sampling='best'": lambda: run(sampling="best"),
        r"scores='all'": lambda: run(scores="all"),
        r"needs a teacher": lambda: run(scores="teacher"),
        r"margin=-1": lambda: run(margin=-1),
        r"on_error='stop'": lambda: run(on_error="stop"),
        r"part_rows=0": lambda: run(part_rows=0),
    }
    for message, case in cases.items():
        with subtests.test(message), pytest.raises((ValueError, FileExistsError, IndexMismatchError), match=message):
            case()
    _, report = mined([{"id": "x", "query": "@0 a"}, QUERY], index, tmp_path / "a.jsonl", on_error="skip")
    assert (report.rows, len(report.skipped)) == (1, 1)
    assert "'x'" in str(report.skipped[0])


def test_what_cannot_be_embedded_is_left_out_and_named(index, tmp_path, subtests):
    rows = [QUERY | {"id": f"q{k}", "query": f"@{k} the query{' LONG' if k in (1, 4) else ''}"} for k in range(6)]
    rows[2] = rows[2] | {"positives": ["@2 LONG document"]}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for rules, names in (
        ({}, ["q1 query", "q4 query"]),
        ({"margin": 0.0}, ["q1 query", "q2 positives[0]", "q4 query"]),
    ):
        with subtests.test(rules):
            output = tmp_path / f"{len(names)}.jsonl"
            with pytest.raises(BadSampleError, match=r"pairs.jsonl:2.*'q1 query'.*too long"):
                mined(tmp_path / "pairs.jsonl", index, output, **rules)
            stopped = SugarIndex.load(index.folder, Angles(calls=2))
            with pytest.raises(KeyboardInterrupt):  # what was left out is told of again
                mined(tmp_path / "pairs.jsonl", stopped, output, on_error="skip", part_rows=2, **rules)
            with pytest.raises(BadSampleError, match="'q1 query'"):
                mined(tmp_path / "pairs.jsonl", index, output, part_rows=2, **rules)
            found, report = mined(tmp_path / "pairs.jsonl", index, output, on_error="skip", part_rows=2, **rules)
            assert [fault.sample for fault in report.skipped] == names
            assert [fault.line for fault in report.skipped] == [int(name[1]) + 1 for name in names]
            assert len(found) == report.rows == 6 - len(names)
            assert report.counts()["skipped"] == len(names)
    with pytest.raises(ValueError, match=r"no pairs.*1 were left out.*'q1 query'"):
        mined([rows[1]], index, tmp_path / "none.jsonl", on_error="skip")
    assert not list(tmp_path.glob("none*"))


def test_what_the_teacher_cannot_see(tmp_path):
    documents = {"d1": "@1 document", "blurred": "@2 BLURRED", "b": "@3 #70", "c": "@4 #80"}
    index = build(tmp_path / "index", documents)
    rows = [QUERY, *(QUERY | {"id": name, "positives": ["@1 BLURRED"]} for name in "rs")]
    options = {"count": 2, "teacher": Judge()}
    with pytest.raises(BadSampleError, match=r"blurred.*the teacher cannot embed it"):
        mined(rows[:1], index, tmp_path / "a.jsonl", **options)
    [negatives], report = mined(rows, index, tmp_path / "a.jsonl", on_error="skip", **options)
    assert negatives == ["@3 #70", "@4 #80"]
    assert report.left_out["the teacher cannot embed it"] == 1
    assert [(fault.sample, fault.row) for fault in report.skipped] == [("r positives[0]", 1), ("s positives[0]", 2)]


def test_an_instruction_for_rows_that_have_none(pictures, tmp_path):
    _, index = pictures
    rows = [{"query": "picture 0.", "positive_ids": ["d0"]}, {"query": "picture 0.", "positive_ids": ["d0"]}]
    rows[1]["instruction"] = "Find it."
    options = {"count": 1, "scores": "index"}
    mined(rows, index, tmp_path / "a.jsonl", prompt="Look for the picture.", **options)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["instruction"] for line in lines] == ["Look for the picture.", "Find it."]
    expected = {hit.id: hit.score for hit in index.search("picture 0.", prompt="Look for the picture.")}
    assert lines[0]["scores"][0] == pytest.approx(expected["d0"], abs=1e-5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An index of pictures and texts by a tiny model, and pairs that name files beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    for k in range(6):
        picture(k).save(folder / "images" / f"{k}.png")
    documents = [Document(f"d{k}", [folder / "images" / f"{k}.png", f"picture {k}."]) for k in range(6)]
    embedder = SugarEmbedder(*cached_sugar("llava"))
    index = SugarIndex.build(folder / "index", documents, embedder, show_progress=False)
    rows = [
        {
            "id": f"q{k}",
            "query": [{"image": f"images/{k}.png"}],
            "positives": [[{"image": f"images/{k}.png"}, f"picture {k}."]],
            "instruction": "Find it.",
        }
        for k in range(2)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, index


def test_images_stay_names_or_become_base64(pictures, tmp_path):
    folder, index = pictures
    teacher = EncoderTeacher(index.embedder, show_progress=False)
    output = folder / "mined.jsonl"
    options = {"teacher": teacher, "teacher_threshold": 1.0, "scores": "index", "count": 2}
    _, report = mined(folder / "pairs.jsonl", index, output, **options)
    assert report.left_out == {"positive": 2}  # the bytes of the named file are those in the index
    line = json.loads(output.read_text().splitlines()[0])
    assert line["query"] == {"image": "images/0.png"}
    assert line["instruction"] == "Find it."
    assert len(line["scores"]) == 3
    rows = load_dataset_file(output)
    stored = rows[0]["negatives"][0]
    assert stored["images"][0]["bytes"] in [(folder / "images" / f"{k}.png").read_bytes() for k in range(1, 6)]
    assert rows[0]["positives"][0]["images"][0]["path"] == str(folder / "images" / "0.png")
    hits = [hit for hit in index.search([to_chat(folder)], 6)[0] if hit.id != "d0"]
    assert line["scores"][1:] == pytest.approx([hit.score for hit in hits[:2]], abs=1e-5)


def to_chat(folder):
    return [
        {"role": "system", "content": [{"type": "text", "text": "Find it."}]},
        {"role": "user", "content": [{"type": "image", "image": folder / "images" / "0.png"}]},
    ]
