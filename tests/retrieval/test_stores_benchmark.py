"""benchmarks/stores.py and benchmarks/walks.py on small inputs."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield
        for name in ("stores", "retrieval_vectors", "walks"):
            sys.modules.pop(name, None)


def test_every_flipped_bit_of_our_store_is_an_error(capsys):
    import stores

    figures = stores.main(["--size", "300", "--dim", "16", "--flips", "5"])
    assert figures["Ours"]["flipped"] == {"error": 5, "same results": 0, "wrong results without an error": 0}
    assert sum(figures["PlainFaiss"]["flipped"].values()) == 5
    for store in ("PlainFaiss", "Ours", "OursWithDocuments"):
        assert figures[store]["exact"]["recall"] == 1
        assert figures[store]["exact"]["milliseconds"] > 0
    assert "x FAISS" in capsys.readouterr().out


def test_the_way_from_a_row_to_an_answer_enters_few_files():
    import walks

    legs = walks.row_to_answer()
    assert len(legs["whole"].visits) <= 28
    assert legs["whole"].moves <= 386


def test_a_training_step_enters_few_files():
    import walks

    step = walks.training_step()["step"]
    assert len(step.visits) <= 23
    assert step.moves <= 286
