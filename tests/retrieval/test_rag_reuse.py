"""Answers that go on from what was computed for the search are those of the whole prompt, for every family."""

import functools
import warnings
import weakref

import pytest
import torch
from builders import BUILDERS, cached_sugar, picture
from transformers.generation.streamers import BaseStreamer
from versions import IS_BEFORE_5_23

from sugar_hf.model import CandidateIndex
from sugar_hf.model.embedding_sugar import TOLERANCE
from sugar_hf.retrieval import KNOWLEDGE_VQA, QUESTION_FIRST, SugarEmbedder, SugarRag
from sugar_hf.retrieval.prefix_cache import PromptCache, encode_prefix, end_of_last_slice
from sugar_hf.retrieval.rag import check_reuse, prepared

DOCUMENTS = [
    ["The tower was built in 1889.", picture(5), "It is made of iron."],
    "A red boat lies in the harbour.",
    [picture(6, 48, 64), "The green house has a garden."],
    "Two cats sleep on the mat. They are grey.",
]
PICTURES = [picture(0), "What is", picture(1, 64, 48), "made of, and when was it built?"]
WORDS = "Where does the boat lie?"
NEW = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
# PaliGemma's prompt sees all of itself; LLaVA-OneVision cuts images by how many there are in the sample, so that
# those that come later cannot be read alone.
WHOLE = {("paligemma", "words"), ("paligemma", "pictures"), ("llava_onevision", "pictures")}
if IS_BEFORE_5_23:
    WHOLE |= {("gemma3", "words"), ("gemma3", "pictures")}


class Tokens(BaseStreamer):
    """Keeps what is generated, special tokens too."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append(value.flatten().tolist())

    def end(self):
        pass


@functools.cache
def index(family):
    """The documents, embedded once."""
    embedder = SugarEmbedder(*cached_sugar(family))
    return CandidateIndex(DOCUMENTS, embedder.encode(DOCUMENTS, show_progress=False))


def make(family, **options):
    return SugarRag(*cached_sugar(family), index(family), top_k=3, **options)


def ask(rag, question, **options):
    """The answer and its tokens."""
    streamer = Tokens()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="With this model, nothing of a prompt is reused")
        answer = rag.answer(question, streamer=streamer, **{**NEW, **options})
    return answer, [token for call in streamer.calls[1:] for token in call]


def test_greedy_answers_are_those_of_the_whole_prompt(subtests):
    for family in BUILDERS:
        for kind in ["pictures", "words"]:
            with subtests.test(kind=kind, family=f"{family!r:.60}"):
                question, processor = PICTURES if kind == "pictures" else WORDS, cached_sugar(family)[1]
                options = {"template": QUESTION_FIRST, "query_form": "prompt"}
                reused, tokens = ask(make(family, **options), question)
                plain, expected = ask(make(family, reuse=False, **options), question)
                assert [hit.id for hit in reused.hits] == [hit.id for hit in plain.hits]
                assert [hit.used for hit in plain.hits] == [
                    len(processor.slices(hit.document.load())) for hit in plain.hits
                ]
                assert tokens == expected
                assert len(tokens) == 12
                assert (reused.text, reused.prompt_tokens) == (plain.text, plain.prompt_tokens)
                assert plain.reused_tokens == 0
                assert (reused.reused_tokens > 0) == ((family, kind) not in WHOLE)


def test_the_check_knows_where_it_is_exact(subtests):
    for family in BUILDERS:
        with subtests.test(family=family):
            check = check_reuse(*cached_sugar(family))
            assert check.is_exact == ((family, "words") not in WHOLE)
            assert check.deviation < 1e-5 if check.is_exact else check.deviation > 5 * TOLERANCE


def test_a_family_that_cannot_says_so_once():
    rag = make("paligemma", template=QUESTION_FIRST)
    with pytest.warns(UserWarning, match="tokens see what comes after them"):
        first = rag.answer(WORDS, **NEW)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="With this model, nothing of a prompt is reused")
        again = rag.answer(WORDS, **NEW)
    assert again.text == first.text
    assert first.reused_tokens == again.reused_tokens == 0


def test_all_of_the_question_is_reused_and_computed_once():
    model, processor = cached_sugar("qwen2_vl")
    rag = make("qwen2_vl", template=QUESTION_FIRST)
    rag.answer(WORDS, **NEW)  # the check
    lengths = []

    def count(module, args, inputs):
        lengths.append(inputs["input_ids"].shape[1])

    question = [picture(0), "What is", picture(1, 64, 48), "made of?"]
    hook = model.vlm.register_forward_pre_hook(count, with_kwargs=True)
    try:
        answer, _ = ask(rag, question)
    finally:
        hook.remove()
    begin = end_of_last_slice(prepared(model, processor, [[{"role": "user", "content": question}]]))
    assert answer.reused_tokens == begin
    assert lengths == [answer.prompt_tokens - begin, *[1] * 11]


def test_documents_first_with_prompts_that_are_kept(subtests):
    for family in ["llava", "qwen2_5_vl", "gemma3"]:
        with subtests.test(family=family):
            rag, plain = make(family, cached_prompts=2), make(family)
            assert rag.template is KNOWLEDGE_VQA
            reused = []
            for question in (WORDS, WORDS, ["Where does the boat lie", picture(3)], WORDS):
                found, tokens = ask(rag, question)
                expected = ask(plain, question)
                assert tokens == expected[1]
                assert [hit.id for hit in found.hits] == [hit.id for hit in expected[0].hits]
                reused.append(found.reused_tokens)
            assert reused[0] == reused[1] == reused[3]
            assert (reused[0] > 0) == ((family, "words") not in WHOLE)


def test_what_is_kept_is_not_changed_by_what_follows():
    model, processor = cached_sugar("llava")
    chats = [[{"role": "user", "content": ["A red boat.", text]}] for text in ("Where?", "When was it?")]
    features = [prepared(model, processor, [chat]) for chat in chats]
    begin = prepared(model, processor, [[{"role": "user", "content": ["A red boat."]}]])
    with torch.no_grad():
        prefix, _ = encode_prefix(model, begin, end_of_last_slice(begin))
    cache = PromptCache(model, 1)
    cache.put(prefix)
    first = cache.find(features[0])
    length = first.length
    assert length == first.cache.get_seq_length() >= prefix.length - 1  # the last token may join what follows
    first.cache.crop(-2)
    second = cache.find(features[1])
    assert length == second.length == second.cache.get_seq_length()
    assert prefix.length == prefix.cache.get_seq_length()
    other = prepared(model, processor, [[{"role": "user", "content": [picture(0), "Where?"]}]])
    assert cache.find(other) is None or cache.find(other).length < prefix.length
    cache.put(cache.find(features[0]))
    assert len(cache) == 1


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_several_sequences_are_generated_from_the_whole(options):
    rag = make("llava", template=QUESTION_FIRST)
    answer = rag.answer(WORDS, **{**NEW, **options})
    assert answer.reused_tokens == 0


def test_what_is_not_used_again_is_not_kept_while_generating(monkeypatch):
    rag = make("llava", template=QUESTION_FIRST, query_form="prompt", reuse=False)
    computed, alive = [], []

    def encode(*arguments):
        prefix, embeddings = encode_prefix(*arguments)
        computed.append(weakref.ref(prefix))
        return prefix, embeddings

    generate = rag.model.generate
    monkeypatch.setattr("sugar_hf.retrieval.rag.encode_prefix", encode)
    monkeypatch.setattr(
        rag.model, "generate", lambda **options: alive.append(computed[0]() is not None) or generate(**options)
    )
    ask(rag, PICTURES)
    assert alive == [False]
