"""Rankings and pairs, with encoders whose vectors are known."""

import json

import numpy as np
import pytest
from benchmark_tools import Saying, scene
from builders import build_tiny_llava, cached_sugar, picture
from matching_tools import Seeing, blind

from sugar_hf import SugarEmbedder
from sugar_hf.data import Document
from sugar_hf.evaluation import (
    Blip2Encoder,
    Pair,
    PairsEvaluator,
    Ranking,
    RankingEvaluator,
    recall_at_k,
    target_ranks,
)
from sugar_hf.evaluation import ranking_evaluator as matching
from sugar_hf.evaluation.baselines import BatchEncoder
from sugar_hf.evaluation.metrics.pair_metrics import winoground_scores
from sugar_hf.evaluation.ranking_evaluator import as_encoder
from sugar_hf.model import SugarRetrievalPipeline

#: Vectors of texts, by the text.
VECTORS = {"east": [1, 0], "north": [0, 1], "mostly east": [2, 1], "mostly north": [1, 2], "west": [-1, 0]}


def read(sample):
    return VECTORS[sample[-1]]


def documents(*texts):
    return [Document(f"{i}: {text}", [text]) for i, text in enumerate(texts)]


def rank(queries, candidates, targets, see=read, **more):
    sets = {"queries": queries, "candidates": candidates}
    ranking = Ranking("test", "queries", "candidates", targets, more.pop("excluded", None))
    evaluator = RankingEvaluator(
        "task", sets, [ranking], primary_metric="test recall@1", seed=3, settings={"split": "x"}
    )
    return evaluator(Seeing(see), **more)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- What embeds ----


def test_encoders_are_taken_as_they_are():
    encoder = Seeing(blind)
    assert as_encoder(encoder) is encoder


def test_a_sugar_model_becomes_an_encoder():
    model, processor = cached_sugar("llava")
    assert isinstance(as_encoder(model, processor), SugarEmbedder)
    with pytest.raises(ValueError, match="processor is missing"):
        as_encoder(model)


def test_a_plain_model_has_no_trained_retrieval_head():
    with pytest.raises(
        ValueError, match=r"type 'llava' and no Sugar model: a retrieval head on it would be untrained"
    ):
        as_encoder(*build_tiny_llava(seed=0))


def test_what_only_generates_does_not_embed():
    with pytest.raises(ValueError, match="Saying embeds nothing"):
        as_encoder(Saying(len))


# ---- Rankings ----


def test_recall_by_hand(tmp_path):
    output = tmp_path / "run.jsonl"
    result = rank(
        documents("east", "north"), documents("mostly north", "mostly east", "west"), [[1], [1]], output=output
    )
    assert result == {
        "test recall@1": 50.0,
        "test recall@5": 100.0,
        "test recall@10": 100.0,
        "test ties": 0,
        "test queries": 2,
        "test candidates": 3,
        "n": 2,
        "seed": 3,
        "failed": [],
        "settings": {"task": "task", "split": "x", "seed": 3, "encoder": "seeing"},
    }
    run, first, second = lines_of(output)
    assert run == {"run": result["settings"]}
    assert first == {
        "ranking": "test",
        "id": "0: east",
        "rank": 1,
        "candidates": [["1: mostly east", 0.894427], ["0: mostly north", 0.447214], ["2: west", -1.0]],
        "targets": ["1: mostly east"],
    }
    assert (second["rank"], second["candidates"][0][0]) == (2, "0: mostly north")


def test_several_targets_are_a_hit_if_any_is_first():
    assert rank(documents("east"), documents("north", "west", "mostly east"), [[1, 2]])["test recall@1"] == 100.0


def test_excluded_candidates_cannot_be_retrieved(tmp_path):
    candidates = documents("east", "mostly east", "north")
    result = rank(
        documents("east", "east"), candidates, [[1], [0]], excluded=[[0], [0]], output=tmp_path / "run.jsonl"
    )
    assert result["test recall@1"] == 50.0
    _, first, second = lines_of(tmp_path / "run.jsonl")
    assert first["rank"] == 1
    assert second["rank"] is None  # its target is excluded
    assert [name for name, _ in second["candidates"]] == ["1: mostly east", "2: north"]


def test_ties_are_counted_and_ranked_by_their_order():
    result = rank(documents("east", "east", "north"), documents("east", "east", "north"), [[0], [1], [2]])
    assert (result["test recall@1"], result["test ties"]) == (pytest.approx(200 / 3), 2)


def test_targets_that_tie_with_each_other_are_no_tie():
    assert rank(documents("east"), documents("east", "east", "north"), [[0, 1]])["test ties"] == 0


def test_more_than_ten_candidates_are_cut_in_the_order_of_ties(tmp_path):
    candidates = documents("west", *["east"] * 14)
    rank(documents("east"), candidates, [[3]], output=tmp_path / "run.jsonl")
    line = lines_of(tmp_path / "run.jsonl")[1]
    assert [name for name, _ in line["candidates"]] == [f"{i}: east" for i in range(1, 11)]
    assert line["rank"] == 3


def test_a_query_that_cannot_be_embedded_is_missed_and_counted(tmp_path):
    queries = [Document("broken", [tmp_path / "no.jpg"]), Document("sound", ["east"])]
    result = rank(queries, documents("east", "north"), [[0], [0]], output=tmp_path / "run.jsonl")
    assert (result["test recall@1"], result["test recall@10"], result["n"]) == (50.0, 50.0, 2)
    [failure] = result["failed"]
    assert (failure["set"], failure["id"]) == ("queries", "broken")
    assert "no.jpg" in failure["error"]
    line = lines_of(tmp_path / "run.jsonl")[1]
    assert (line["rank"], line["candidates"]) == (None, [])


def test_a_candidate_that_cannot_be_embedded_is_never_found_and_counted(tmp_path):
    candidates = [Document("broken", [tmp_path / "no.jpg"]), *documents("east", "north")]
    result = rank(documents("east", "east", "north"), candidates, [[0], [0, 1], [2]])
    assert (result["test recall@10"], result["test candidates"]) == (pytest.approx(200 / 3), 3)
    assert [failure["set"] for failure in result["failed"]] == ["candidates"]


def test_nothing_is_found_if_no_candidate_can_be_embedded(tmp_path):
    result = rank(documents("east"), [Document("broken", [tmp_path / "no.jpg"])], [[0]])
    assert (result["test recall@10"], result["test ties"], len(result["failed"])) == (0.0, 0, 1)


def test_documents_with_several_vectors_are_as_near_as_the_nearest():
    see = {"both": [[1, 0], [0, 1]], "east": [1, 0], "diagonal": [1, 1]}
    candidates = documents("diagonal", "both")
    result = rank(documents("east"), candidates, [[1]], see=lambda sample: see[sample[-1]])
    assert result["test recall@1"] == 100.0


@pytest.mark.parametrize("block", [1, 7, 40])
def test_scores_in_blocks_give_the_same_figures(monkeypatch, tmp_path, block):
    rng = np.random.default_rng(0)
    vectors = {f"text {i}": rng.normal(size=4) for i in range(30)}
    queries, candidates = documents(*list(vectors)[:19]), documents(*list(vectors)[10:])
    targets = rng.integers(0, 20, (19, 2)).tolist()
    arguments = {"see": lambda sample: vectors[sample[-1]], "excluded": rng.integers(0, 20, (19, 3)).tolist()}
    whole = rank(queries, candidates, targets, **arguments, output=tmp_path / "whole.jsonl")
    monkeypatch.setattr(matching, "BLOCK", block)
    assert rank(queries, candidates, targets, **arguments, output=tmp_path / "parts.jsonl") == whole
    for one, other in zip(lines_of(tmp_path / "whole.jsonl")[1:], lines_of(tmp_path / "parts.jsonl")[1:], strict=True):
        assert (one["id"], one["rank"], one["targets"]) == (other["id"], other["rank"], other["targets"])


def test_a_second_run_embeds_nothing_and_gives_the_same(tmp_path):
    sets = {"queries": documents("east", "north"), "candidates": documents("north", "east")}
    evaluator = RankingEvaluator(
        "task", sets, [Ranking("r", "queries", "candidates", [[1], [0]])], primary_metric="r recall@1"
    )
    encoder = Seeing(read)
    first = evaluator(encoder, output=tmp_path / "run.jsonl")
    assert len(encoder.asked) == 4
    written = (tmp_path / "run.jsonl").read_bytes()
    assert evaluator(encoder, output=tmp_path / "run.jsonl") == first
    assert len(encoder.asked) == 4
    assert (tmp_path / "run.jsonl").read_bytes() == written


def test_a_run_that_was_stopped_leaves_no_lines_and_keeps_its_embeddings(tmp_path):
    sets = {"queries": documents("east"), "candidates": documents("north", "unheard of")}
    evaluator = RankingEvaluator(
        "task", sets, [Ranking("r", "queries", "candidates", [[0]])], primary_metric="r recall@1"
    )
    encoder = Seeing(read)
    with pytest.raises(KeyError):
        evaluator(encoder, output=tmp_path / "run.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["run.embeddings"]
    encoder.see = lambda sample: VECTORS.get(sample[-1], [1, 1])
    evaluator(encoder, output=tmp_path / "run.jsonl")
    assert encoder.asked.count("0: east") == 1


class Cutting(Seeing, BatchEncoder):
    """Counts two texts as cut whenever it encodes, as long as it lives."""

    truncated, max_length = 7, 3
    _embed = None

    def embed_documents(self, documents, **options):
        self.truncated += 2
        return super().embed_documents(documents, **options)

    def notes(self):
        return BatchEncoder.notes(self)


def test_texts_that_were_cut_are_counted_for_each_run_also_when_it_goes_on(tmp_path):
    evaluator = RankingEvaluator(
        "task",
        {"queries": documents("east"), "candidates": documents("north")},
        [Ranking("r", "queries", "candidates", [[0]])],
        primary_metric="r recall@1",
    )
    encoder = Cutting(read)
    for _ in range(2):
        result = evaluator(encoder, output=tmp_path / "run.jsonl")
        assert result["settings"]["notes"] == {"truncated": 4, "max_text_tokens": 3}
    assert evaluator(encoder)["settings"]["notes"]["truncated"] == 4
    assert len(encoder.asked) == 4


def test_the_output_of_another_run_is_refused(tmp_path):
    evaluator = RankingEvaluator(
        "task", {"all": documents("east")}, [Ranking("r", "all", "all", [[0]])], primary_metric="r recall@1"
    )
    evaluator(Seeing(read), output=tmp_path / "run.jsonl")
    with pytest.raises(ValueError, match=r"run\.jsonl is of another run"):
        evaluator(Seeing(read, "other"), output=tmp_path / "run.jsonl")


def test_fewer_targets_than_documents_ask_the_first_only():
    result = rank(documents("east", "north", "west"), documents("east", "north"), [[0], [1]])
    assert (result["n"], result["test queries"]) == (2, 2)


def test_rankings_are_checked_before_anything_is_embedded(subtests):
    for ranking, message in [
        (Ranking("r", "nothing", "all", [[0]]), "task, r: there is no set 'nothing', only all"),
        (Ranking("r", "all", "all", []), "0 targets for 2 queries"),
        (Ranking("r", "all", "all", [[0]] * 3), "3 targets for 2 queries"),
        (Ranking("r", "all", "all", [[0], []]), "query 1 has no target"),
        (Ranking("r", "all", "all", [[0], [2]]), "query 1 names a candidate that is not among the 2"),
        (Ranking("r", "all", "all", [[0], [1]], [[-1], []]), "query 0 names a candidate"),
        (Ranking("r", "all", "all", [[0], [1]], [[0]]), "1 exclusions for 2 targets"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            RankingEvaluator("task", {"all": documents("east", "north")}, [ranking], primary_metric="r recall@1")


def test_two_documents_with_one_id_are_refused():
    evaluator = RankingEvaluator(
        "task",
        {"all": [Document("a", ["east"]), Document("a", ["north"])]},
        [Ranking("r", "all", "all", [[0]])],
        primary_metric="r recall@1",
    )
    with pytest.raises(ValueError, match="task: two of the all have the id 'a'"):
        evaluator(Seeing(read))


def test_a_real_model_ranks_as_the_pipeline_does():
    model, processor = cached_sugar("llava")
    queries, candidates = [[f"thing {i}", picture(i)] for i in range(6)], [[picture(i)] for i in range(6)]
    sets = {
        name: [Document(str(i), sample) for i, sample in enumerate(samples)]
        for name, samples in (("q", queries), ("c", candidates))
    }
    evaluator = RankingEvaluator(
        "t", sets, [Ranking("next", "q", "c", [[i] for i in range(6)])], primary_metric="next recall@1"
    )
    found = evaluator(model, processor, batch_size=4)
    pipe = SugarRetrievalPipeline(model=model, processor=processor, task="sugar-retrieval")
    scores = pipe.encode(queries) @ pipe.encode(candidates).T
    recalls = recall_at_k(target_ranks(scores, [[i] for i in range(6)]), (1, 5, 10))
    expected = {**recalls, "queries": 6, "candidates": 6}
    assert {name: found[f"next {name}"] for name in expected} == expected
    assert found["settings"]["encoder"] == "SugarEmbedder"


# ---- Pairs ----


def pairs(count=2):
    return [Pair(str(i), ("east", "north"), (scene(2 * i)[0], scene(2 * i + 1)[0]), f"type {i}") for i in range(count)]


def measure(items, see, **more):
    evaluator = PairsEvaluator(
        "task",
        items,
        lambda scores, groups: winoground_scores(scores),
        primary_metric="image",
        settings={"split": "x"},
    )
    return evaluator(Seeing(see), **more)


def test_pairs_by_hand(tmp_path):
    images = iter([[1, 0], [0, 1], [3, 1], [2, 1]])  # the second item: both images look east

    def see(sample):
        return VECTORS[sample[-1]] if isinstance(sample[-1], str) else next(images)

    result = measure(pairs(), see, output=tmp_path / "run.jsonl")
    assert result == {
        "text": 50.0,
        "image": 100.0,
        "group": 50.0,
        "n": 2,
        "seed": 0,
        "failed": [],
        "settings": {"task": "task", "n": 2, "split": "x", "scoring": "similarity", "seed": 0, "encoder": "seeing"},
    }
    run, first, second = lines_of(tmp_path / "run.jsonl")
    assert run["run"] == result["settings"]
    assert first == {"id": "0", "group": "type 0", "scores": [[1.0, 0.0], [0.0, 1.0]]}
    np.testing.assert_allclose(second["scores"], [[3 / 10**0.5, 2 / 5**0.5], [1 / 10**0.5, 1 / 5**0.5]], rtol=1e-6)


def test_an_item_with_a_missing_image_is_wrong_and_listed(tmp_path):
    items = [*pairs(1), Pair("lost", ("east", "north"), (scene(2)[0], tmp_path / "no.png"))]
    images = iter([[1, 0], [0, 1], [1, 0]])
    result = measure(
        items, lambda s: VECTORS[s[-1]] if isinstance(s[-1], str) else next(images), output=tmp_path / "r.jsonl"
    )
    assert (result["text"], result["image"], result["group"], result["n"]) == (50.0, 50.0, 50.0, 2)
    assert [(failure["set"], failure["id"]) for failure in result["failed"]] == [("images", "lost image 1")]
    assert lines_of(tmp_path / "r.jsonl")[2]["scores"] is None


def test_equal_scores_are_wrong():
    result = measure(pairs(), blind)
    assert (result["text"], result["image"], result["group"]) == (0.0, 0.0, 0.0)


class Matching(Blip2Encoder):
    """A BLIP-2 whose matching head knows the first caption and picture of each item."""

    def __init__(self):
        self.name, self.truncated, self.max_length = "matching", 5, 3

    def match(self, pairs, batch_size=8):
        self.truncated += 1
        for _, image in pairs:
            image.load()
        return np.array([0.9 if text.id[-1] == image.id[-1] else 0.1 for text, image in pairs], np.float32)

    def describe(self):
        return {"encoder": self.name}


def test_pairs_can_be_scored_by_the_matching_head(tmp_path):
    items = [*pairs(1), Pair("lost", ("east", "north"), (scene(2)[0], tmp_path / "no.png"))]
    evaluator = PairsEvaluator(
        "task", items, lambda scores, groups: winoground_scores(scores), primary_metric="image", scoring="match"
    )
    result = evaluator(Matching(), output=tmp_path / "run.jsonl")
    assert (result["group"], result["n"]) == (50.0, 2)
    assert [(failure["set"], failure["id"]) for failure in result["failed"]] == [("pairs", "lost image 1")]
    assert (result["settings"]["scoring"], result["settings"]["notes"]) == (
        "match",
        {"truncated": 2, "max_text_tokens": 3},
    )
    with pytest.raises(ValueError, match="scoring=match needs BLIP-2, and seeing has no matching head"):
        evaluator(Seeing(blind))


def test_pairs_need_items_with_different_ids_and_a_known_scoring():
    arguments = {"score": lambda scores, groups: {}, "primary_metric": "image"}
    with pytest.raises(ValueError, match="there are no samples"):
        PairsEvaluator("task", [], **arguments)
    with pytest.raises(ValueError, match="scoring='guess' is none of similarity, match"):
        PairsEvaluator("task", pairs(), scoring="guess", **arguments)
    with pytest.raises(ValueError, match="two of the samples have the id '0 text 0'"):
        PairsEvaluator("task", pairs(1) * 2, **arguments)(Seeing(blind))
