"""LLaVA-Bench and MM-Vet, from official files and from rows, with judges whose marks are known."""

import json

import pytest
from benchmark_tools import Saying, pictures, scene, words, write_json
from fixtures_choices import HUB, LLAVA_W, MM_VET, RAW

from sugar_hf.evaluation.benchmarks.judges import RefusedPromptError
from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks

NAMES = ("llava-w", "mm-vet")
FORMS = {"raw": RAW, "hub": HUB}
FULL = {"llava-w": "8 8\nBoth are good.", "mm-vet": "1.0"}
NONE = {"llava-w": "8 0\nThe second is none.", "mm-vet": "0.0"}


def load(name, folder, **options):
    return all_tasks()[name].load(Source(name, str(folder), **options))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every data set in every form, written once."""
    found = {(name, form): tmp_path_factory.mktemp(f"{name}-{form}") for name in NAMES for form in FORMS}
    for (name, form), folder in found.items():
        FORMS[form][name](folder)
    return found


class Judge:
    """A judge that says what a function of the prompt says; it notes what it was asked."""

    def __init__(self, reply, name="wise"):
        self.name, self.reply, self.asked = name, reply, []

    def __call__(self, prompt, *, system=None, temperature=0.0, max_tokens=1024):
        self.asked.append({"prompt": prompt, "system": system, "temperature": temperature, "max_tokens": max_tokens})
        return self.reply(prompt)


def test_full_marks_score_full_and_none_nothing(folders, subtests):
    for name in NAMES:
        for form in FORMS:
            with subtests.test(form=f"{form!r:.60}", name=name):
                generator = Saying(lambda sample: "an answer")
                evaluator = load(name, folders[name, form], judge=Judge(lambda prompt, name=name: FULL[name]))
                result = evaluator(generator)
                assert result[evaluator.primary_metric] == 100
                assert (result["n"], result["scored"], result["unparsed"], result["unjudged"]) == (3, True, 0, [])
                assert result["settings"]["judge"] == "wise"
                assert all(len(pictures(sample)) == 1 for sample in generator.asked)
                evaluator = load(name, folders[name, form], judge=Judge(lambda prompt, name=name: NONE[name]))
                assert evaluator(generator)[evaluator.primary_metric] == 0


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_ask_model_and_judge_the_same(folders, name):
    found = []
    for form in FORMS:
        judge, generator = Judge(lambda prompt, name=name: FULL[name]), Saying(lambda sample: words(sample)[::-1])
        load(name, folders[name, form], judge=judge)(generator)
        found.append((sorted(map(words, generator.asked)), judge.asked))
    assert found[0] == found[1]
    assert len(found[0][1]) == 3


def test_the_model_is_asked_the_question_alone(folders):
    for name, questions in (("llava-w", [row[0] for row in LLAVA_W]), ("mm-vet", [row[0] for row in MM_VET.values()])):
        generator = Saying(words)
        evaluator = load(name, folders[name, "raw"])
        assert evaluator(generator)["settings"]["max_new_tokens"] == 1024
        assert sorted(map(words, generator.asked)) == sorted(questions)


def test_what_the_judge_is_asked(folders):
    judge = Judge(lambda prompt: "8 8")
    load("llava-w", folders["llava-w", "raw"], judge=judge)(Saying(lambda sample: "said"))
    asked = judge.asked[1]
    start = f"[Context]\n{scene(1)[1]}\n\n[Question]\nDescribe the picture in detail.\n\n[Assistant 1]\n"
    start += "A drawn scene with several things.\n\n[End of Assistant 1]\n\n[Assistant 2]\nsaid\n\n"
    assert asked["prompt"].startswith(f"{start}[End of Assistant 2]\n\n[System]\n")
    assert asked["system"] == "You are a helpful and precise assistant for checking the quality of the answer."
    assert (asked["temperature"], asked["max_tokens"]) == (0.2, 1024)
    judge = Judge(lambda prompt: "1.0")
    load("mm-vet", folders["mm-vet", "raw"], judge=judge)(Saying(lambda sample: "said"))
    assert judge.asked[0]["prompt"].endswith("\nWhat is x in the equation? | -1 <AND> -5 | said | ")
    assert (judge.asked[0]["temperature"], judge.asked[0]["system"]) == (0, None)


def test_the_judge_can_be_given_the_official_words(folders, tmp_path):
    rules = {f"llava_bench_{name}": {"role": "Assistant", "prompt": f"Mark {name}."} for name in ("conv", "detail")}
    write_json(tmp_path / "rule.json", rules)
    options = {"judge_words": str(tmp_path / "rule.json")}
    with pytest.raises(ValueError, match="llava_bench_complex: the field is missing"):
        load("llava-w", folders["llava-w", "raw"], judge=Judge(FULL.get), options=options)(Saying(words))
    judge = Judge(lambda prompt: "8 8")
    result = load("llava-w", folders["llava-w", "raw"], judge=judge, options=options, limit=2)(Saying(words))
    assert [asked["prompt"].split("\n")[-3] for asked in judge.asked] == ["Mark conv.", "Mark detail."]
    assert result["settings"]["judge_words"] == "rule.json"
    write_json(tmp_path / "words.json", {"instruction": "Mark.", "examples": [["q", "a", "p", "0.1"]]})
    options = {"judge_words": str(tmp_path / "words.json")}
    judge = Judge(lambda prompt: "1.0")
    load("mm-vet", folders["mm-vet", "raw"], judge=judge, options=options)(Saying(lambda sample: "said"))
    assert judge.asked[1]["prompt"].startswith("Mark.\nQuestion | ")
    assert "\nq | a | p | 0.1\nWhich animal" in judge.asked[1]["prompt"]
    with pytest.raises(ValueError, match=r"no file 'nowhere.json', which judge_words names"):
        load("mm-vet", folders["mm-vet", "raw"], options={"judge_words": "nowhere.json"})
    write_json(tmp_path / "list.json", [])
    with pytest.raises(ValueError, match=r"list.json: the judge's words are an object"):
        load("mm-vet", folders["mm-vet", "raw"], options={"judge_words": str(tmp_path / "list.json")})


def test_llava_bench_is_relative_to_the_reference(folders):
    replies = {"name": "8 4", "Describe": "10, 7\nwhy", "Why": "no idea"}
    judge = Judge(
        lambda prompt: next(reply for word, reply in replies.items() if word in prompt.split("[Question]")[1])
    )
    evaluator = load("llava-w", folders["llava-w", "raw"], judge=judge)
    # what cannot be read is -1 for both; with means of -1 and -1 in one category, that one has no score
    with pytest.raises(ValueError, match="complex: the reference's mean score is"):
        evaluator(Saying(words))
    replies["Why"] = "5 4"
    result = evaluator(Saying(words))
    assert {key: result[key] for key in ("conv", "detail", "complex", "all")} == {
        "conv": 50,
        "detail": 70,
        "complex": 80,
        "all": pytest.approx(65.2),  # 15 / 23
    }


def test_mm_vet_by_capability(folders):
    grades = {"equation": "0.5", "animal": "1.0 | so", "mean": "0.0"}
    judge = Judge(lambda prompt: next(g for word, g in grades.items() if word in prompt.rsplit("\n", 1)[1]))
    result = load("mm-vet", folders["mm-vet", "hub"], judge=judge)(Saying(words))
    expected = {"total": 50, "ocr": 25, "math": 50, "rec": 50, "know": 0, "unparsed": 0}
    assert {key: result[key] for key in expected} == expected


def test_mm_vet_asks_again_at_higher_temperatures(folders):
    replies = iter(["so", "so", "0.5", *["so"] * 5, "1.0"])
    judge = Judge(lambda prompt: next(replies))
    result = load("mm-vet", folders["mm-vet", "raw"], judge=judge)(Saying(words))
    assert [asked["temperature"] for asked in judge.asked] == [0, 0.5, 1, 0, 0.5, 1, 1.5, 2, 0]
    assert (result["total"], result["unparsed"]) == (50, 1)  # 0.5, 0 and 1


def test_runs_of_the_judge_are_averaged(folders, tmp_path):
    replies = iter(["1.0"] * 3 + ["0.5"] * 3)
    judge = Judge(lambda prompt: next(replies))
    options = {"judge_runs": "2"}
    result = load("mm-vet", folders["mm-vet", "raw"], judge=judge, options=options)(Saying(words))
    assert (result["total"], result["runs"]) == (75, [100, 50])
    assert result["settings"]["judge_runs"] == 2
    with pytest.raises(ValueError, match="judge_runs='0' is no number of runs"):
        load("mm-vet", tmp_path, options={"judge_runs": "0"})


@pytest.mark.parametrize("name", NAMES)
def test_without_a_judge_answers_are_written_and_not_scored(folders, tmp_path, name):
    evaluator = load(name, folders[name, "raw"])
    result = evaluator(Saying(lambda sample: f"{words(sample)} Yes."), output=tmp_path / "run.jsonl")
    assert evaluator.primary_metric is None
    assert result["scored"] is False
    assert "There is no judge" in result["reason"]
    assert not {"detail", "total", "all", "unparsed"} & result.keys()
    with open(result["submission"]) as file:
        if name == "mm-vet":
            assert json.load(file) == {id: f"{row[0]} Yes." for id, row in MM_VET.items()}
            assert result["server"] == "https://huggingface.co/spaces/whyu/MM-Vet_Evaluator"
        else:
            said = [{"question_id": n, "prompt": row[0], "text": f"{row[0]} Yes."} for n, row in enumerate(LLAVA_W)]
            assert [json.loads(line) for line in file] == said


@pytest.mark.parametrize("name", NAMES)
def test_a_judge_marks_answers_that_were_given_before(folders, tmp_path, name):
    output = tmp_path / "run.jsonl"
    folder = folders[name, "raw"]
    load(name, folder)(Saying(words), output=output)
    nobody = Saying(lambda sample: "")
    judge = Judge(lambda prompt, name=name: FULL[name])
    options = {"judge_runs": "2"} if name == "mm-vet" else {}
    evaluator = load(name, folder, judge=judge, options=options)
    assert evaluator(nobody, output=output)[evaluator.primary_metric] == 100
    assert nobody.asked == []
    other = load(name, folder, judge=Judge(lambda prompt, name=name: NONE[name], name="org/strict"))
    assert other(nobody, output=output)[other.primary_metric] == 0
    assert {path.name for path in tmp_path.glob("*.judge-*")} == {"run.judge-strict.jsonl", "run.judge-wise.jsonl"}


@pytest.mark.parametrize("name", NAMES)
def test_judging_goes_on_where_it_was_stopped(folders, tmp_path, name):
    output = tmp_path / "run.jsonl"

    def stops(prompt):
        if len(judge.asked) == 3:
            raise ConnectionError("away")
        return FULL[name]

    judge = Judge(stops)
    with pytest.raises(ConnectionError, match="away"):
        load(name, folders[name, "raw"], judge=judge)(Saying(words), output=output)
    judge = Judge(lambda prompt, name=name: FULL[name])
    evaluator = load(name, folders[name, "raw"], judge=judge)
    whole = evaluator(Saying(words), output=output)
    assert whole[evaluator.primary_metric] == 100
    assert len(judge.asked) == 1
    assert evaluator(Saying(words), output=output) == whole
    assert len(judge.asked) == 1


def test_marks_of_other_answers_are_not_taken(folders, tmp_path):
    output = tmp_path / "run.jsonl"
    evaluator = load("mm-vet", folders["mm-vet", "raw"], judge=Judge(lambda prompt: "1.0"))
    evaluator(Saying(words), output=output)
    output.unlink()
    with pytest.raises(ValueError, match=r"run.judge-wise.jsonl: sample 'v1_0 run 1 try 1' was another"):
        evaluator(Saying(lambda sample: "another"), output=output)


def test_a_refused_prompt_is_listed_and_asked_again(folders, tmp_path):
    def refuses(prompt):
        if "animal" in prompt:
            raise RefusedPromptError("no animals")
        return "1.0"

    judge = Judge(refuses)
    evaluator = load("mm-vet", folders["mm-vet", "raw"], judge=judge)
    result = evaluator(Saying(words), output=tmp_path / "run.jsonl")
    assert result["unjudged"] == [{"id": "v1_1 run 1 try 1", "error": "no animals"}]
    assert (result["total"], result["unparsed"]) == (pytest.approx(200 / 3), 1)
    judge.reply = lambda prompt: "1.0"
    result = evaluator(Saying(words), output=tmp_path / "run.jsonl")
    assert (result["total"], result["unjudged"]) == (100, [])
    assert len(judge.asked) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_image_is_listed_and_not_judged(tmp_path, name):
    RAW[name](tmp_path)
    (tmp_path / "images" / {"llava-w": "002.jpg", "mm-vet": "v1_1.png"}[name]).unlink()
    judge = Judge(lambda prompt, name=name: FULL[name])
    evaluator = load(name, tmp_path, judge=judge)
    result = evaluator(Saying(words), output=tmp_path / "run.jsonl")
    assert [failure["id"] for failure in result["failed"]] == [{"llava-w": "1", "mm-vet": "v1_1"}[name]]
    assert len(judge.asked) == 2
    assert (result[evaluator.primary_metric], result["unparsed"]) == ({"llava-w": 0, "mm-vet": 200 / 3}[name], 0)
    said = (tmp_path / "run.submission").with_suffix(
        {"llava-w": ".submission.jsonl", "mm-vet": ".submission.json"}[name]
    )
    assert '""' in said.read_text()


def test_limit(folders):
    for name in NAMES:
        for form in FORMS:
            assert load(name, folders[name, form], limit=2)(Saying(words))["n"] == 2


def test_what_is_missing_is_named(tmp_path):
    for name in NAMES:
        with pytest.raises(ValueError, match=rf"{name}: cannot load .*docs/benchmarks.md"):
            load(name, tmp_path)
    RAW["llava-w"](tmp_path)
    RAW["mm-vet"](tmp_path)
    write_json(tmp_path / "mm-vet.json", {"v1_0": {"imagename": "v1_0.png", "question": "?", "capability": ["ocr"]}})
    with pytest.raises(ValueError, match=r"v1_0.*answer: the field is missing"):
        load("mm-vet", tmp_path)(Saying(words))
    context = tmp_path / "context.jsonl"
    context.write_text(context.read_text().replace("003.jpg", "004.jpg"))
    with pytest.raises(ValueError, match=r"context.jsonl: no caption of 003.jpg, which question 2 is about"):
        load("llava-w", tmp_path)(Saying(words))
    answers = tmp_path / "answers_gpt4.jsonl"
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text(lines[1] + lines[0] + lines[2])
    with pytest.raises(ValueError, match=r"question 0 has the answer to 1 in its line"):
        load("llava-w", tmp_path)
    answers.write_text(lines[0])
    with pytest.raises(ValueError, match="3 questions, but 1 answers"):
        load("llava-w", tmp_path)
    answers.unlink()
    with pytest.raises(FileNotFoundError, match=r"llava-w: no answers_gpt4.jsonl in"):
        load("llava-w", tmp_path)
