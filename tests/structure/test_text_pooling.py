"""The text teacher pools as its sentence-transformers folder says, or is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from test_teachers import save_teachers, word_tokenizer
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, T5Config, T5Model

from sugar_hf.structure import TripleTeacher
from sugar_hf.structure import text_pooling as pooling

TEXTS = ["a red cat", "the dog on the mat", "blue"]
TYPES = "sentence_transformers.models."


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return save_teachers(tmp_path_factory.mktemp("teachers"))


def as_sentence_encoder(checkpoints, folder, pooling=None, modules=("Transformer", "Pooling"), **files):
    """A copy of the teachers whose text encoder has the files of sentence-transformers."""
    shutil.copytree(checkpoints["text"], folder)
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    entries = [
        {"idx": i, "name": str(i), "path": paths.get(kind, str(i)), "type": TYPES + kind}
        for i, kind in enumerate(modules)
    ]
    files = {"modules": entries, "1_Pooling/config": pooling or {}, **files}
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return {**checkpoints, "text": str(folder)}


def vectors(names, **options):
    teacher = TripleTeacher.from_pretrained(**names, show_progress=False, **options)
    return np.stack([row["teacher_text"][0] for row in teacher.embed([[text] for text in TEXTS])]), teacher


def states(names, text):
    with torch.no_grad():
        return BertModel.from_pretrained(names["text"])(
            **word_tokenizer(16)(text, return_tensors="pt")
        ).last_hidden_state


BY_HAND = {
    "cls": lambda states: states[:, 0],
    "mean": lambda states: states.mean(1),
    "max": lambda states: states.amax(1),
    "lasttoken": lambda states: states[:, -1],
}


def test_pooling_is_that_of_the_folder(checkpoints, tmp_path, subtests):
    for form in ["old", "new"]:
        for mode in BY_HAND:
            with subtests.test(mode=mode, form=form):
                flag = (
                    "pooling_mode_lasttoken"
                    if mode == "lasttoken"
                    else f"pooling_mode_{mode}_token" + "s" * (mode != "cls")
                )
                config = (
                    {"pooling_mode": mode} if form == "new" else {**dict.fromkeys(pooling.FLAGS, False), flag: True}
                )
                names = as_sentence_encoder(
                    checkpoints, tmp_path / form / mode, config, ("Transformer", "Pooling", "Normalize")
                )
                found, teacher = vectors(names)
                expected = [normalize(BY_HAND[mode](states(names, text)), dim=-1)[0].numpy() for text in TEXTS]
                assert found == pytest.approx(np.stack(expected), abs=2e-3)
                plain, cls = vectors(checkpoints)
                assert (teacher.fingerprint == cls.fingerprint) == (mode == "cls")
                assert np.allclose(found, plain, atol=2e-3) == (mode == "cls")


def test_it_is_what_sentence_transformers_gives(checkpoints, tmp_path):
    from sentence_transformers import SentenceTransformer

    files = {
        "sentence_bert_config": {"max_seq_length": 6, "do_lower_case": True},
        "config_sentence_transformers": {"prompts": {"q": "the cat "}, "default_prompt_name": "q"},
    }
    config = {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 16}
    names = as_sentence_encoder(checkpoints, tmp_path / "text", config, **files)
    with pytest.warns(UserWarning, match=r"for the text teacher \(at 6 tokens\)"):
        found, _ = vectors(names)
    encoder = SentenceTransformer(names["text"], device="cpu")
    assert found == pytest.approx(encoder.encode(TEXTS, normalize_embeddings=True), abs=2e-3)


@pytest.mark.parametrize(
    ("modules", "config", "files", "message"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode": "mean"}, {}, "modules Dense"),
        (("Transformer", "Pooling"), {"pooling_mode": ["mean", "max"]}, {}, "pools by mean and max"),
        (("Transformer", "Pooling"), {"pooling_mode_weightedmean_tokens": True}, {}, "pools by weightedmean"),
        (("Transformer",), {}, {}, "has no Pooling"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode": "mean", "include_prompt": False},
            {"config_sentence_transformers": {"prompts": {"q": "a "}, "default_prompt_name": "q"}},
            "leaves the tokens of its prompt 'a ' out",
        ),
    ],
)
def test_what_is_not_supported_is_refused(checkpoints, tmp_path, modules, config, files, message):
    names = as_sentence_encoder(checkpoints, tmp_path / "text", config, modules, **files)
    with pytest.raises(ValueError, match=rf"{message}.*text_pooling"):
        TripleTeacher.from_pretrained(**names)
    found, _ = vectors(names, text_pooling="cls")
    assert found == pytest.approx(vectors(checkpoints)[0], abs=2e-3)


def test_unknown_poolings_and_encoder_decoders_are_refused(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="'sum' is not supported: there are cls, mean, max, lasttoken"):
        TripleTeacher.from_pretrained(**checkpoints, text_pooling="sum")
    shutil.copytree(checkpoints["text"], tmp_path / "text")
    T5Model(T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=12)).save_pretrained(
        tmp_path / "text"
    )
    with pytest.raises(TypeError, match="T5Model is both"):
        TripleTeacher.from_pretrained(**{**checkpoints, "text": str(tmp_path / "text")})


def test_hub_that_cannot_be_asked_is_no_answer(monkeypatch):
    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(pooling, "hf_hub_download", offline)
    with pytest.raises(ValueError, match=r"the Hub is not reached.*text_pooling"):
        pooling.read_pooling("sentence-transformers/all-MiniLM-L6-v2")
    assert pooling.read_pooling("sentence-transformers/all-MiniLM-L6-v2", "mean").mode == "mean"


def test_padding_on_either_side_does_not_matter():
    real = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    right, left = torch.zeros(1, 5, 4), torch.zeros(1, 5, 4)
    right[:, :3], left[:, 2:] = real, real
    masks = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([[0, 0, 1, 1, 1]])
    for mode, by_hand in BY_HAND.items():
        for padded, mask in zip((right, left), masks, strict=True):
            torch.testing.assert_close(pooling.TextPooling(mode).pool(padded, mask), by_hand(real))


def test_positions_behind_the_padding_token_count(checkpoints, tmp_path):
    """RoBERTa has two more rows in its table than it takes tokens: a text of all of them would crash."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    roberta = RobertaModel(RobertaConfig(**small, vocab_size=12, max_position_embeddings=16, pad_token_id=0))
    tokenizer = word_tokenizer(10**30)
    assert pooling.most_tokens(roberta, tokenizer) == 15
    assert (
        pooling.most_tokens(BertModel(BertConfig(**small, vocab_size=12, max_position_embeddings=16)), tokenizer) == 16
    )
    for part in (roberta, tokenizer):
        part.save_pretrained(tmp_path / "text")
    teacher = TripleTeacher.from_pretrained(**{**checkpoints, "text": str(tmp_path / "text")}, show_progress=False)
    with pytest.warns(UserWarning, match="1 for the text teacher"):
        teacher.embed([["cat " * 30]])


def test_vectors_that_are_not_finite_are_refused(checkpoints):
    teacher = TripleTeacher.from_pretrained(**checkpoints, show_progress=False)
    with torch.no_grad():
        teacher.text.embeddings.LayerNorm.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"teacher_text is NaN or infinite.*float32"):
        teacher.embed([["a cat"]])
