"""What a generation hands on is never taken back, and all of it is the answer."""

import contextlib
import threading

import pytest
import torch

from sugar_hf.serving.embedding_worker import QueueFullError
from sugar_hf.serving.generation_worker import GenerationCancelled, GenerationWorker, Rows, Task, Watch
from sugar_hf.serving.server_metrics import Metrics

END = 0
PROMPT = [7, 7, 7]


def run(pieces, stops=(), ends=(END,), decode=None, until=None):
    """Generate one piece of bytes after the other; returns what was handed on, and the watch."""
    table = [b"", *(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)]
    decode = decode or (lambda ids: b"".join(table[at] for at in ids if at != END).decode(errors="replace"))
    emitted = []
    watch = Watch(decode, ends, stops, emitted.append)
    ids = torch.tensor([PROMPT])
    for number in range(1, len(table)):
        ids = torch.cat([ids, torch.tensor([[number]])], dim=1)
        if until == number:
            watch.cancel()
        if bool(watch(ids, None)):
            break
    watch.finish()
    return emitted, watch


def test_pieces_make_the_answer():
    emitted, watch = run([" a", " red", " cat", ".", "\n", "\n"])
    assert emitted == ["a", " red", " cat", "."]
    assert watch.text == "a red cat."
    assert (watch.tokens, watch.finish_reason) == (6, "length")


def test_whitespace_inside_is_kept_and_at_the_ends_is_not():
    emitted, watch = run(["\n ", "a", "  ", "\n", "b", "  "])
    assert "".join(emitted) == watch.text == "a  \nb"


def test_a_character_of_several_tokens_comes_whole():
    fox = "狐狸".encode()
    emitted, watch = run([fox[:1], fox[1:4], fox[4:], "!"])
    assert emitted == ["狐", "狸", "!"]
    assert watch.text == "狐狸!"


def test_a_stop_over_several_tokens_is_never_handed_on(subtests):
    for stops, expected in (
        (["STOP"], "one two"),
        (["TOP"], "one two S"),
        (["never", "two"], "one"),
        (["o"], ""),
        (["STOPP"], "one two STOP three"),
    ):
        with subtests.test(stops=stops):
            emitted, watch = run(["one", " two", " S", "TO", "P three"], stops)
            assert "".join(emitted) == watch.text == expected
            assert watch.finish_reason == ("length" if "STOPP" in stops else "stop")


def test_an_end_is_the_reason_that_it_ended():
    watch = Watch(lambda ids: "", [5])
    for token in (1, 5):
        watch(torch.tensor([[*PROMPT, *([1] if token == 5 else []), token]]), None)
    assert (watch.tokens, watch.finish_reason) == (2, "stop")


def test_a_cancelled_one_ends_at_once():
    _, watch = run(["a", "b", "c", "d"], until=2)
    assert watch.tokens == 2


def test_a_tokenizer_that_takes_words_back_is_an_error():
    words = {1: "a", 2: "b c"}
    with pytest.raises(RuntimeError, match="otherwise when more follows"):
        run(["x", "y"], decode=lambda ids: words[len(ids)])


def test_each_row_of_a_batch_ends_on_its_own():
    """At an end, a limit, a stop or as its client leaves; what comes after is padding."""
    ended = []
    watches = [Watch(lambda ids: "".join(map(str, ids)), [9], stops) for stops in ((), (), ("23",), (), ())]
    watches[1].most = 2
    rows = Rows(watches, ended.append)
    ids = torch.zeros(5, 3, dtype=torch.long)
    for token, expected in (
        ([1, 1, 1, 1, 1], [False] * 5),
        ([1, 2, 2, 2, 2], [False, True, False, False, False]),
        ([9, 0, 3, 2, 2], [True, True, True, False, False]),
        ([0, 0, 0, 4, 4], [True, True, True, True, False]),
    ):
        ids = torch.cat([ids, torch.tensor(token)[:, None]], dim=1)
        if token[3] == 4:
            watches[3].cancel()
        assert rows(ids, None).tolist() == expected
    assert ended == [1, 0, 2, 3]
    assert [watch.tokens for watch in watches] == [3, 2, 3, 4, 4]
    assert [watch.finish_reason for watch in watches] == ["stop", "length", "stop", "length", "length"]
    assert watches[2].text == "1"


def test_a_queue_that_is_stopped_fails_what_waits():
    worker = GenerationWorker(most_together=1, most_waiting=1, metrics=Metrics(), adapters=contextlib.nullcontext)
    begun, goes = threading.Event(), threading.Event()
    watches = [Watch(lambda ids: "", []) for _ in range(3)]
    first = worker.submit(Task(lambda tasks: (begun.set(), goes.wait(30), tasks[0].end(None)), watches[0]))
    begun.wait(30)
    second = worker.submit(Task(lambda tasks: None, watches[1]))
    with pytest.raises(QueueFullError):
        worker.submit(Task(lambda tasks: None, watches[2]))
    watches[0].cancel()
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    while not worker._stopped:
        pass
    goes.set()
    stopping.join(30)
    with pytest.raises(GenerationCancelled):
        first.result(30)
    with pytest.raises(RuntimeError, match="was stopped"):
        second.result(30)
    assert not worker.is_alive
