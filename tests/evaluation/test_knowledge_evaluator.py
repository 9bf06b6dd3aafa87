"""Questions that are answered with what is found for them."""

import json
from pathlib import Path

import numpy as np
import pytest
from benchmark_tools import Saying, pictures, scene, words
from knowledge_tools import Comparing

from sugar_hf import picturebook
from sugar_hf.data import Document
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_hf.evaluation.examples import Example
from sugar_hf.evaluation.knowledge_evaluator import KnowledgeEvaluator, Pool, View

FACTS = ["a cat purrs", "a dog barks", "a cow moos", "a dog runs"]
QUESTIONS = ["cat sound", "dog barks sound", "cow sound"]
GOLD = [[0], [1], [2]]


def documents(texts):
    return [Document(f"{i}", [text] if isinstance(text, str) else text) for i, text in enumerate(texts)]


def score(records):
    return {"accuracy": 100 * sum(record.reference in record.text for record in records) / len(records)}


def evaluator(questions=QUESTIONS, facts=FACTS, queries=None, sides=None, views=None, **options):
    examples = [Example.of(f"q{i}", [text], FACTS[i]) for i, text in enumerate(questions)]
    queries = queries or {"text": questions}
    pool = {"gold": GOLD} | {key: options.pop(key) for key in ("allowed", "gold", "refuses") if key in options}
    views = {name: View(documents(texts), "facts") for name, texts in queries.items()} if views is None else views
    return KnowledgeEvaluator(
        "farm",
        examples,
        Pool(documents(facts), sides or {"facts": documents(facts)}, **pool),
        views,
        lambda question, found: [*(part for parts in found for part in parts), *question],
        score,
        primary_metric="accuracy",
        max_new_tokens=8,
        **options,
    )


def asked(generator):
    return sorted(words(sample) for sample in generator.asked)


def test_what_is_found_goes_before_the_question():
    generator = Saying(words)
    result = evaluator()(generator, encoder=Comparing())
    assert asked(generator) == ["a cat purrs cat sound", "a cow moos cow sound", "a dog barks dog barks sound"]
    assert result["accuracy"] == 100
    assert (result["retrieval recall@1"], result["retrieval recall@5"]) == (100, 100)
    assert (result["n"], result["failed"], result["skipped"], result["unsearched"]) == (3, [], [], 0)
    assert result["settings"]["encoder"] == {"encoder": "comparing"}
    assert result["settings"]["encoder notes"] == {"embedded": 7}
    assert (result["settings"]["view"], result["settings"]["top_k"], result["settings"]["pool"]) == ("text", 1, 4)


def test_several_documents_stand_in_the_order_of_their_similarity():
    generator = Saying(words)
    evaluator(top_k=2)(generator, encoder=Comparing())
    assert "a dog barks a dog runs dog barks sound" in asked(generator)


def test_without_retrieval_nothing_is_embedded():
    generator, encoder = Saying(words), Comparing()
    result = evaluator(top_k=0)(generator, encoder=encoder)
    assert asked(generator) == sorted(QUESTIONS)
    assert encoder.embedded == []
    assert "retrieval recall@1" not in result
    assert result["settings"]["top_k"] == 0


def test_a_model_that_cannot_retrieve_needs_an_encoder():
    with pytest.raises(ValueError, match=r"saying has no retrieval head.*--retriever"):
        evaluator()(Saying(words))


def test_the_similarity_is_the_mean_over_the_views():
    one, other = ["cat dog"], ["dog barks"]
    facts = FACTS[:2]
    found = {}
    for queries in ({"one": one}, {"other": other}, {"one": one, "other": other}):
        result = evaluator(["cat dog"], facts, queries, gold=[[1]], ks=(1,))(Saying(words), encoder=Comparing())
        found["+".join(queries)] = result["retrieval recall@1"]
    assert found == {"one": 0, "other": 100, "one+other": 100}  # "cat dog" is as near to both: the first is found


def test_scores_are_cosines_and_their_means(tmp_path):
    path = tmp_path / "farm.jsonl"
    evaluator(["cat"], ["cat"], {"same": ["cat"], "half": ["cat dog"]}, gold=[[0]])(
        Saying(words), encoder=Comparing(), output=path
    )
    [record] = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    [hit] = record["info"]["retrieved"]
    assert hit["score"] == pytest.approx((1 + np.sqrt(0.5)) / 2, abs=1e-6)
    assert (hit["id"], hit["right"]) == ("0", True)


def test_each_view_may_search_its_own_side_of_the_pool():
    sides = {"names": documents(["x", "cat", "x", "x"]), "sounds": documents(["x", "x", "cat", "x"])}
    views = {"name": View(documents(["cat"] * 3), "names")}
    generator = Saying(words)
    evaluator(sides=sides, views=views)(generator, encoder=Comparing())
    assert all(text.startswith("a dog barks") for text in asked(generator))
    views = {"sound": View(documents(["cat"] * 3), "sounds")}
    generator = Saying(words)
    evaluator(sides=sides, views=views)(generator, encoder=Comparing())
    assert all(text.startswith("a cow moos") for text in asked(generator))


def test_a_question_may_search_among_its_own_candidates_only():
    generator = Saying(words)
    result = evaluator(allowed=[[1, 2], [3], []])(generator, encoder=Comparing())
    assert asked(generator) == ["a dog barks cat sound", "a dog runs dog barks sound", "cow sound"]
    assert result["retrieval recall@5"] == 0
    assert result["unsearched"] == 0


def test_refused_candidates_are_passed_over():
    generator = Saying(words)
    evaluator(refuses=lambda question, number: number in (1, 3), gold=None)(generator, encoder=Comparing())
    assert "a cat purrs dog barks sound" in asked(generator)
    generator = Saying(words)
    evaluator(refuses=lambda question, number: True, gold=None)(generator, encoder=Comparing())
    assert asked(generator) == sorted(QUESTIONS)


def test_equal_similarities_go_to_the_first_candidates():
    generator = Saying(words)
    evaluator(["bird"] * 3, ["w one", "w two", "w three", "w four"], top_k=3)(generator, encoder=Comparing())
    assert all(text.startswith("w one w two w three") for text in asked(generator))


def test_chunks_change_nothing(monkeypatch):
    whole, parts = Saying(words), Saying(words)
    evaluator(top_k=2)(whole, encoder=Comparing())
    monkeypatch.setattr("sugar_hf.evaluation.knowledge_evaluator.CHUNK", 1)
    evaluator(top_k=2)(parts, encoder=Comparing())
    assert asked(whole) == asked(parts)


def test_what_cannot_be_embedded_is_listed(tmp_path):
    broken = [Path(tmp_path / "none.png")]
    generator = Saying(words)
    result = evaluator(
        queries={"text": [QUESTIONS[0], broken, QUESTIONS[2]]},
        sides={"facts": documents([broken, *FACTS[1:]])},
    )(generator, encoder=Comparing())
    assert "dog barks sound" in asked(generator)  # its query cannot be embedded: no documents
    assert not any("purrs" in text for text in asked(generator))  # this candidate cannot be
    assert result["unsearched"] == 1
    assert [(each["set"], each["id"]) for each in result["skipped"]] == [
        ("candidates-facts", "0"),
        ("questions-text", "1"),
    ]
    assert all("none.png" in each["error"] for each in result["skipped"])
    assert result["failed"] == []
    assert result["retrieval recall@1"] == pytest.approx(100 / 3)


def test_a_document_that_cannot_be_loaded_fails_its_question(tmp_path):
    sides = {"facts": documents(FACTS)}
    result = evaluator(facts=[[tmp_path / "none.png"], *FACTS[1:]], sides=sides)(Saying(words), encoder=Comparing())
    [failure] = result["failed"]
    assert failure["id"] == "q0"
    assert "none.png" in failure["error"]
    assert result["accuracy"] == pytest.approx(200 / 3)
    assert result["n"] == 3


def test_a_run_goes_on_without_embedding_or_asking_again(tmp_path):
    path = tmp_path / "farm.jsonl"
    first = evaluator()(Saying(words), encoder=Comparing(), output=path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    generator, encoder = Saying(words), Comparing()
    second = evaluator()(generator, encoder=encoder, output=path)
    assert len(generator.asked) == 1
    assert encoder.embedded == []
    first["settings"].pop("encoder notes"), second["settings"].pop("encoder notes")
    assert second == first
    assert json.loads(path.read_text().splitlines()[-1])["info"]["retrieved"][0]["right"] is True


def test_predictions_of_another_search_are_refused(tmp_path):
    path = tmp_path / "farm.jsonl"
    evaluator()(Saying(words), encoder=Comparing(), output=path)
    with pytest.raises(ValueError, match=r"another run.*top_k: 1 there, 2 now"):
        evaluator(top_k=2)(Saying(words), encoder=Comparing(), output=path)


def test_lengths_must_agree_in_a_pool():
    with pytest.raises(ValueError, match="farm: queries of the view text: 2, where 3 are needed"):
        evaluator(queries={"text": QUESTIONS[:2]})
    with pytest.raises(ValueError, match="farm: candidates facts: 3, where 4 are needed"):
        evaluator(sides={"facts": documents(FACTS[:3])})
    with pytest.raises(ValueError, match="farm: gold: 1, where 3 are needed"):
        evaluator(gold=[[0]])
    with pytest.raises(ValueError, match="top_k=-1"):
        evaluator(top_k=-1)


def test_sugar_retrieves_for_itself():
    model, processor = open_model(str(picturebook.checkpoint("mini-sugar")), device="cpu")
    pool = [scene(i)[0] for i in range(4)]
    examples = [Example.of(f"q{i}", [scene(i)[0], "Is there a dog?"], "") for i in range(2)]
    evaluator = KnowledgeEvaluator(
        "own",
        examples,
        Pool(
            documents([[image] for image in pool]), {"images": documents([[image] for image in pool])}, gold=[[0], [1]]
        ),
        {"image": View(documents([[image] for image in pool[:2]]), "images")},
        lambda question, found: [*(part for parts in found for part in parts), *question],
        lambda records: {"answered": float(sum(record.prediction is not None for record in records))},
        primary_metric="answered",
        max_new_tokens=4,
    )
    result = evaluator(model, processor)
    assert result["retrieval recall@1"] == 100  # an image is most like itself
    assert (result["answered"], result["failed"]) == (2, [])
    assert result["settings"]["encoder"]["encoder"] == "SugarEmbedder"
    generator = Saying(lambda sample: str(len(pictures(sample))))
    evaluator(generator, encoder=Comparing())
    assert [len(pictures(sample)) for sample in generator.asked] == [2, 2]
