"""A saved folder is a model of sentence-transformers, and gives the vectors of `SugarEmbedder`."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build_sugar, cached_sugar, picture
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from training_tools import make_trainer

from sugar_hf import SugarEmbedder, SugarForConditionalGeneration, SugarProcessor, merge_adapter, picturebook
from sugar_hf.model import export_for_hub
from sugar_hf.model.checkpoint_sugar import write_settings
from sugar_hf.model.input_module_sugar import SugarModule

FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def message(role, *parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return {"role": role, "content": content}


# What sentence-transformers is given, and the sample that it stands for.
CHAT = [message("user", "A cat", picture(1), "sits."), message("assistant", "It is grey.")]
SAMES = [
    "a cat",
    "A dog runs far away, over the hills.",
    picture(1),
    CHAT,
    [message("user", "a cat")],
    [{"role": "user", "content": "a cat"}],
    [message("user", picture(1))],
    [message("system", "Look closely."), message("user", picture(2), "a cat", picture(3))],
    ["a cat", picture(2)],
    [picture(2), "a cat"],
    ["a cat", "a dog"],
]
PAIRS = [
    *[(sample, sample) for sample in SAMES],
    ({"text": "a cat"}, "a cat"),
    (["a cat", picture(2), "a dog"], ["a cat", picture(2), "a dog"]),
    ([picture(2)], picture(2)),
    ((picture(2), {"text": "a cat", "image": picture(3)}), [picture(2), "a cat", picture(3)]),
    ({"image": picture(2)}, picture(2)),
    ({"text": "a cat", "image": picture(2)}, ["a cat", picture(2)]),
    ({"image": picture(2), "text": "a cat"}, [picture(2), "a cat"]),
    ({"image": [picture(2), picture(3)], "text": ["a cat", "a dog"]}, [picture(2), picture(3), "a cat", "a dog"]),
    ({"text": "http://pictures.org/cat.png"}, "http://pictures.org/cat.png"),
]
INPUTS = [given for given, _ in PAIRS]


def near(found, expected):
    return np.asarray(found).shape == np.asarray(expected).shape and np.abs(found - expected).max() < 1e-5


def save(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def load(folder, **kwargs):
    return SentenceTransformer(str(folder), device="cpu", **kwargs)


def expected_of(model, processor, samples, **options):
    return SugarEmbedder(model, processor, **options).encode(samples, show_progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(*cached_sugar("llava"), tmp_path_factory.mktemp("llava"))


@pytest.fixture
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def expected():
    return expected_of(*cached_sugar("llava"), [sample for _, sample in PAIRS])


def test_each_form_alone_gives_our_vector(model, expected):
    for given, vector in zip(INPUTS, expected, strict=True):
        assert near(model.encode([given])[0], vector), given


def test_forms_mixed_in_one_call_give_our_vectors_in_order(model, expected):
    for seed, batch_size in enumerate([1, 4, 64]):
        order = np.random.default_rng(seed).permutation(len(INPUTS))
        found = model.encode([INPUTS[i] for i in order], batch_size=batch_size)
        assert found.dtype == np.float32
        assert near(found, expected[order]), batch_size


def test_every_two_kinds_of_forms_share_a_batch(model, expected):
    kinds = [0, 2, 3, 7, 9, 11, 15, 16]  # text, image, chat, one with instructions, a list, dicts of text, image, both
    for first in kinds:
        for second in kinds:
            found = model.encode([INPUTS[first], INPUTS[second]])
            assert near(found, expected[[first, second]]), (INPUTS[first], INPUTS[second])


def test_a_text_is_not_the_chat_that_says_it(expected):
    text, chat, string_chat = (expected[i] for i in (0, 4, 5))
    assert np.abs(text - chat).max() > 1e-2
    assert near(string_chat, chat)


def test_a_lone_input_gives_one_vector(model, expected):
    for place in (0, 2, 3, len(SAMES), -3):
        assert near(model.encode(INPUTS[place]), expected[place])


def test_a_message_alone_is_a_chat(model, expected):
    found = model.encode(["a cat", message("user", "a cat")])
    assert near(found, expected[[0, 4]])
    assert near(model.encode(message("user", "a cat")), expected[4])


@pytest.mark.parametrize("family", ["qwen3_vl", "paligemma"])
def test_other_families_give_our_vectors(family, tmp_path):
    model, processor = cached_sugar(family)
    expected = expected_of(model, processor, [sample for _, sample in PAIRS])
    found = load(save(model, processor, tmp_path))
    assert near(found.encode(INPUTS), expected)
    assert near(np.concatenate([found.encode([given]) for given in INPUTS]), expected)


def test_a_model_without_chat_template_takes_all_but_chats(fresh_llava, tmp_path):
    model, processor = fresh_llava
    processor.chat_template = processor.tokenizer.chat_template = None
    found = load(save(model, processor, tmp_path))
    samples = ["a cat", picture(1)]
    assert near(found.encode(samples), expected_of(model, processor, samples))
    with pytest.raises(ValueError, match="no chat template"):
        found.encode([CHAT])
    with pytest.raises(ValueError, match="no chat template"):
        found.encode(["a cat", CHAT])


def test_shipped_checkpoint_loads_and_gives_our_vectors():
    folder = picturebook.checkpoint("mini-sugar")
    samples = ["A red cat.", picture(1), [message("user", "What is it?", picture(1))]]
    found = load(folder, model_kwargs={"dtype": torch.float32})
    assert found.get_embedding_dimension() == found[0].model.config.retrieval_dim
    ours = SugarEmbedder.from_pretrained(folder, device="cpu", dtype=torch.float32)
    assert near(found.encode(samples), ours.encode(samples, show_progress=False))


def test_shipped_checkpoint_has_the_files_that_saving_writes(tmp_path):
    write_settings(tmp_path)
    for name in FILES:
        assert Path(picturebook.checkpoint("mini-sugar"), name).read_bytes() == (tmp_path / name).read_bytes()


def test_options_of_encode(model, expected):
    found = model.encode(INPUTS, convert_to_tensor=True)
    assert isinstance(found, torch.Tensor)
    assert near(found.numpy(), expected)
    assert near(model.encode(INPUTS, normalize_embeddings=True), expected)
    assert model.encode([]).shape == (0,)
    cut = model.encode(INPUTS, truncate_dim=4, normalize_embeddings=True)
    assert near(cut, expected_of(*cached_sugar("llava"), [sample for _, sample in PAIRS], truncate_dim=4))
    assert near(model.encode(np.array(["a cat", "a dog"])), model.encode(["a cat", "a dog"]))


def test_dimension_and_similarity(model, folder, expected):
    assert model.get_embedding_dimension() == expected.shape[1] == 16
    with pytest.warns(FutureWarning, match="renamed"):
        assert model.get_sentence_embedding_dimension() == 16
    assert load(folder, truncate_dim=4).get_embedding_dimension() == 4
    assert model.similarity_fn_name == "cosine"
    found = model.encode(INPUTS[:3], convert_to_tensor=True)
    assert near(model.similarity(found, found).numpy(), expected[:3] @ expected[:3].T)


def test_prompts_that_cannot_be_used_as_they_are(folder, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    file = changed / "config_sentence_transformers.json"
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"prompts": 1}', "cannot be read"),
        ('{"prompts": {"query": 1}}', "texts by name"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"(?s)config_sentence_transformers.json.*{message}"):
            SugarEmbedder.from_pretrained(changed, device="cpu")
    file.write_text(json.dumps({"prompts": {"query": "Look."}, "default_prompt_name": "query"}))
    with pytest.warns(UserWarning, match="default prompt 'query'"):
        ours = SugarEmbedder.from_pretrained(changed, device="cpu")
    found = ours.encode(["a cat"], show_progress=False, prompt_name="query")
    assert near(found, load(changed).encode(["a cat"]))
    file.unlink()
    assert SugarEmbedder.from_pretrained(changed, device="cpu").prompts == {}


def test_saved_by_sentence_transformers_it_loads_again(folder, expected, tmp_path):
    model = load(folder, prompts={"query": "Look."}, truncate_dim=8)
    model.save_pretrained(str(tmp_path / "again"))
    again = load(tmp_path / "again")
    assert again.prompts == {"query": "Look.", "document": ""}
    assert again.truncate_dim == 8
    assert near(again.encode(INPUTS, truncate_dim=16), expected)
    assert type(again[0]) is SugarModule
    ours = SugarEmbedder.from_pretrained(tmp_path / "again", device="cpu")
    assert near(ours.encode(["a cat"], show_progress=False), expected[:1])
    for texts in (["a cat"], ["a cat", "a dog"]):
        named = again.encode(texts, prompt_name="query", truncate_dim=16)
        assert near(ours.encode(texts, show_progress=False, prompt_name="query"), named)
        assert near(ours.encode(texts, show_progress=False, prompt="Look."), named)
        assert near(
            ours.encode(texts, show_progress=False, prompt_name="document"),
            again.encode_document(texts, truncate_dim=16),
        )
        assert not near(ours.encode(texts, show_progress=False), named)
    with pytest.raises(ValueError, match="prompt_name='passage': again has 'document', 'query'"):
        ours.encode(["a cat"], prompt_name="passage")
    with pytest.raises(ValueError, match="not both"):
        ours.encode_slices(["a cat"], prompt_name="query", prompt="Look.")
    model.append(Normalize())  # modules that were added stay too
    model.save_pretrained(str(tmp_path / "more"))
    assert [type(module).__name__ for module in load(tmp_path / "more")] == ["SugarModule", "Normalize"]


def test_a_prompt_is_a_system_message(model):
    image = picture(1)
    asked = message("system", "Find it.")
    expected = expected_of(
        *cached_sugar("llava"),
        [
            [asked, message("user", "a cat")],
            [asked, message("user", image)],
            [asked, message("user", image, "a cat")],
            [asked, message("user", "a cat", image)],
            [asked, *CHAT],
        ],
    )
    inputs = ["a cat", image, [image, "a cat"], {"text": "a cat", "image": image}, CHAT]
    assert near(model.encode(inputs, prompt="Find it."), expected)
    assert near(np.concatenate([model.encode([given], prompt="Find it.") for given in inputs]), expected)


def test_queries_and_documents_have_no_prompt_unless_one_is_set(model, expected):
    assert near(model.encode_query(INPUTS), expected)
    assert near(model.encode_document(INPUTS), expected)


def test_retrieval_evaluator_runs(model):
    corpus = {"c": picture(1), "d": "a dog", "e": {"text": "a cat", "image": picture(2)}, "f": CHAT}
    queries = {"1": "a dog", "2": picture(1), "3": ["a cat", picture(2)], "4": CHAT}
    relevant = {"1": {"d"}, "2": {"c"}, "3": {"e"}, "4": {"f"}}
    evaluate = InformationRetrievalEvaluator(
        queries, corpus, relevant, accuracy_at_k=[1], mrr_at_k=[1], ndcg_at_k=[1], precision_recall_at_k=[1]
    )
    results = evaluate(model)
    assert results["cosine_accuracy@1"] == 1.0  # each query lies in the corpus


def test_processing_options_are_those_of_the_processor(model, llava):
    sample = ["a cat sits on a mat", picture(1)]
    longest = len(llava[1]([sample[:1]])["input_ids"][0]) + 1
    options = {"text": {"truncation": "slice", "max_length": longest}}
    with pytest.warns(UserWarning, match="dropped its last 1 slices"):
        found = model.encode([sample], processing_kwargs=options)
    assert near(found, expected_of(*llava, sample[:1]))
    with pytest.raises(ValueError, match=f"more than max_length={longest}"):
        model.encode([sample], processing_kwargs={"text": {"max_length": longest}})
    with pytest.raises(ValueError, match="truncation='longest_first'"):
        model.encode(["a cat"], processing_kwargs={"text": {"truncation": "longest_first"}})
    with pytest.raises(ValueError, match="no options return_offsets_mapping"):
        model.encode(["a cat"], processing_kwargs={"text": {"return_offsets_mapping": True}})
    with pytest.raises(ValueError, match="leave out the chat template's add_generation_prompt"):
        model.encode(["a cat"], processing_kwargs={"chat_template": {"add_generation_prompt": True}})


def test_longer_samples_than_max_seq_length_are_refused(fresh_llava, tmp_path):
    model = load(save(*fresh_llava, tmp_path))
    model.max_seq_length = 2
    with pytest.raises(ValueError, match=r"input 'a cat sits on a mat'.* more than max_length=2"):
        model.encode(["a cat sits on a mat"])


def test_bad_input_is_refused_alone_and_in_company(model, subtests):
    for others in [[], ["a cat"], [CHAT]]:
        for given, said in [
            ("", "input ''.*text is empty"),
            (None, "Unsupported input type: NoneType"),
            (3, "Unsupported input type: int"),
            ({}, "Empty dict"),
            ({"txt": "a cat"}, "unrecognized modality keys: .*txt"),
            ({"text": "a cat", "image": None}, "NoneType|needs one of image"),
            ({"image": "no/such/file.png"}, "no file 'no/such/file.png'"),
            ({"image": "http://pictures.org/cat.png"}, "is an address, and nothing is downloaded"),
            ("http://pictures.org/cat.png", r"takes the text 'http://pictures.org/cat.png' for an image"),
            (
                (picture(1), "http://pictures.org/cat.png"),
                r"takes the text 'http://pictures.org/cat.png' for an image",
            ),
            (["a", [picture(1)], "cat"], "Unsupported input type: list"),
            ([], "Unsupported input type: list|neither text nor image"),
            (np.zeros((8, 8, 3), np.uint8), "ndarray is neither text nor image|needs one of image"),
            (np.zeros(100, np.float32), "audio|neither text nor image"),
            ({"audio": "a.wav"}, "audio|neither text nor image"),
            ([{"role": "user"}], "Unsupported input type: list"),
            ([{"role": "user", "content": []}], "needs a `role`"),
            ([message("user", "a cat"), {"role": "assistant"}], "needs a `role`"),
            ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], "neither text nor image"),
            ([message("system", "Look.")], "neither text nor image"),
        ]:
            with (
                subtests.test(said=said),
                pytest.raises(ValueError, match=said),
            ):
                model.encode([*others, given])


def test_a_text_that_names_a_file_is_not_read_as_an_image(model, tmp_path):
    picture(1).save(tmp_path / "cat.png")
    with pytest.raises(ValueError, match="for an image"):
        model.encode([str(tmp_path / "cat.png")])
    chat = [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "cat.png")}]}]
    found = model.encode([chat, {"image": str(tmp_path / "cat.png")}])
    assert near(found, model.encode([[message("user", picture(1))], picture(1)]))


def test_vectors_that_are_none_are_refused(fresh_llava, tmp_path):
    model = load(save(*fresh_llava, tmp_path))
    with torch.no_grad():
        model[0].model.retrieval_head.hidden_to_embedding.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="no unit vector"):
        model.encode(["a cat"])


@pytest.mark.parametrize(
    "with_template",
    [True, False],
)
def test_a_folder_without_the_settings_gives_no_vectors(fresh_llava, tmp_path, with_template):
    model, processor = fresh_llava
    if not with_template:
        processor.chat_template = processor.tokenizer.chat_template = None
    save(model, processor, tmp_path)
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ValueError, match="embedding dimension"):
        load(tmp_path).encode(["a cat"])


def test_a_folder_with_the_settings_of_an_earlier_version_says_what_to_do(llava, tmp_path):
    save(*llava, tmp_path)
    output = {"method": "forward", "method_output_name": "last_embeds"}
    name = "sentence_transformers.base.modules.transformer.Transformer"
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": name}]))
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": output, "image": output, "message": {**output, "format": "structured"}},
        "module_output_name": "sentence_embedding",
        "processing_kwargs": {"text": {"truncation": False}, "chat_template": {"restore_suffix": False}},
        "unpad_inputs": False,
    }
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings))
    old = load(tmp_path)
    for given in ("a cat", picture(1), CHAT, ["a cat", picture(1)]):
        with pytest.raises(ValueError, match="saved for sentence-transformers by an earlier version"):
            old.encode([given])
    save(*llava, tmp_path)  # as the error says
    assert near(load(tmp_path).encode(["a cat"]), expected_of(*llava, ["a cat"]))


def test_features_count_the_images_of_chats_in_company(model):
    features = model.preprocess([CHAT, picture(1), "a cat", [message("user", picture(1), picture(2))]])
    assert features["num_images_per_sample"].tolist() == [1, 1, 0, 2]


def test_embeddings_can_be_trained(fresh_llava, tmp_path):
    model = load(save(*fresh_llava, tmp_path)).train()
    embeds = model(model.preprocess(["a cat", picture(1), CHAT]))["sentence_embedding"]
    (embeds[0] @ embeds[1:].T).sum().backward()
    gradients = [parameter.grad for parameter in model[0].model.retrieval_head.parameters()]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_either_of_model_and_processor_writes_the_settings(llava, tmp_path):
    model, processor = llava
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "processor")
    for folder in (tmp_path / "model", tmp_path / "processor"):
        assert {path.name for path in folder.iterdir()} >= set(FILES)
    types = [module["type"] for module in json.loads((tmp_path / "model" / FILES[0]).read_text())]
    assert types == ["sugar_hf.model.input_module_sugar.SugarModule"]


def test_adapters_load_as_they_are_and_merged(tmp_path):
    base, processor = build_sugar("llava")
    base = SugarForConditionalGeneration.from_pretrained(save(base, processor, tmp_path / "base"))
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config).eval()
    expected = expected_of(adapted, processor, ["a cat", picture(1)])
    save(adapted, processor, tmp_path / "adapter")
    assert near(load(tmp_path / "adapter").encode(["a cat", picture(1)]), expected)
    save(merge_adapter(adapted), processor, tmp_path / "merged")
    assert near(load(tmp_path / "merged").encode(["a cat", picture(1)]), expected)


def test_a_checkpoint_of_the_trainer_loads(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    expected = expected_of(trainer.model, trainer.processing_class, ["a cat", picture(1)])
    assert near(load(tmp_path / "checkpoint-1").encode(["a cat", picture(1)]), expected)


def test_a_version_that_takes_no_classes_asks_for_trust(folder, expected, monkeypatch):
    monkeypatch.setattr(BaseModel, "_module_classes", {})
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load(folder)
    assert near(load(folder, trust_remote_code=True).encode(INPUTS), expected)


ORDERS = {
    "before": "import sugar_hf; from sentence_transformers import SentenceTransformer; trust = {}",
    "after": "from sentence_transformers import SentenceTransformer; import sugar_hf; trust = {}",
    "never": "from sentence_transformers import SentenceTransformer; trust = {'trust_remote_code': True}",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_import_may_stand_before_or_after(folder, expected, tmp_path, order):
    program = f"""{ORDERS[order]}
import sys, numpy as np
np.save(sys.argv[2], SentenceTransformer(sys.argv[1], device="cpu", **trust).encode(["a cat"]))
"""
    subprocess.run([sys.executable, "-c", program, folder, str(tmp_path / "out.npy")], cwd=tmp_path, check=True)
    assert near(np.load(tmp_path / "out.npy"), expected[:1])


def test_processing_options_are_saved_with_the_model(folder, llava, tmp_path):
    model = load(folder)
    model[0].processing_kwargs = {"text": {"max_length": 8}}
    model.save_pretrained(str(tmp_path))
    again = load(tmp_path)
    with pytest.raises(ValueError, match="more than max_length=8"):
        again.encode(["a cat sits on a mat far away"])
    assert again.encode(["a cat sits on a mat far away"], processing_kwargs={"text": {"max_length": 99}}).any()
    with pytest.raises(ValueError, match="no options for audio, only for text and image"):
        again.encode(["a cat"], processing_kwargs={"audio": {"padding": True}})
    with pytest.raises(ValueError, match="Sugar runs with backend='torch' only"):
        load(folder, backend="onnx")


def test_inputs_are_left_as_they_are(model):
    chat = [message("user", "a cat", picture(1))]
    given = [chat, {"text": ["a", "b"]}, "a cat"]
    before = copy.deepcopy([[{**m, "content": [p["type"] for p in m["content"]]} for m in chat], *given[1:]])
    model.encode(given, prompt="Find it.")
    assert [[{**m, "content": [p["type"] for p in m["content"]]} for m in chat], *given[1:]] == before


def test_a_model_that_was_used_can_be_sent(model, expected):
    assert near(model.encode(INPUTS[:4]), expected[:4])
    sent = pickle.loads(pickle.dumps(model))
    assert near(sent.encode(INPUTS[:4]), expected[:4])
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied[0].model.retrieval_head.hidden_to_embedding.bias.fill_(torch.nan)
    assert near(model.encode(INPUTS[:4]), expected[:4])


@pytest.mark.slow
def test_several_processes_give_our_vectors(folder, llava, tmp_path):
    program = """
import sys, numpy as np, sugar_hf
from PIL import Image
from sentence_transformers import SentenceTransformer

if __name__ == "__main__":
    folder, image, out = sys.argv[1:]
    model = SentenceTransformer(folder, device="cpu")
    image = Image.open(image)
    chat = [{"role": "user", "content": [{"type": "image", "image": image}]}]
    inputs = [image, "a cat", {"text": "a cat", "image": image}, chat]
    model.encode(inputs)  # which leaves hooks in the model
    np.save(out, model.encode(inputs, device=["cpu", "cpu"], chunk_size=1))
"""
    image = picture(1)
    image.save(tmp_path / "image.png")
    (tmp_path / "program.py").write_text(program)
    arguments = [folder, str(tmp_path / "image.png"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "program.py", *arguments], cwd=tmp_path, check=True)
    expected = expected_of(*llava, [image, "a cat", ["a cat", image], [message("user", image)]])
    assert near(np.load(tmp_path / "out.npy"), expected)


STRANGER = """
import sys
sys.modules["sugar_hf"] = None
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

folder, image, out = sys.argv[1:]
model = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
image = Image.open(image)
chat = [{"role": "user", "content": [{"type": "text", "text": "A cat."}, {"type": "image", "image": image}]}]
np.save(out, model.encode(["A cat.", image, chat, {"text": "A cat.", "image": image}]))
"""


@pytest.fixture
def exported(llava, tmp_path):
    return export_for_hub(*llava, tmp_path / "tiny")


def test_an_export_loads_with_the_package(exported, expected):
    assert near(load(exported).encode(INPUTS), expected)


@pytest.mark.slow
def test_an_export_loads_without_the_package(exported, llava, tmp_path):
    image = picture(1)
    image.save(tmp_path / "image.png")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    paths = [str(exported), str(tmp_path / "image.png"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", STRANGER, *paths], env=environment, cwd=tmp_path, check=True)
    expected = expected_of(*llava, ["A cat.", image, [message("user", "A cat.", image)], ["A cat.", image]])
    assert near(np.load(tmp_path / "out.npy"), expected)


def test_a_cached_folder_of_the_hub_loads_by_its_name(exported, expected, tmp_path):
    commit = "0123456789" * 4
    cached = tmp_path / "hub" / "models--me--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(exported, cached / "snapshots" / commit)
    found = load("me/tiny", cache_folder=str(tmp_path / "hub"), local_files_only=True)
    assert near(found.encode(INPUTS), expected)


def test_without_trust_the_class_of_the_loaded_model_is_ours(model):
    assert type(model[0].model) is SugarForConditionalGeneration
    assert type(model[0].processor) is SugarProcessor


def test_other_users_of_the_chat_template_are_not_affected(llava):
    _, processor = llava
    chat = [message("user", "Hello."), message("assistant", "It is grey.")]
    options = {"tokenize": True, "return_dict": True}
    expected = processor.backbone_processor.apply_chat_template(chat, **options)
    assert processor.apply_chat_template(chat, **options) == expected
    assert "It is grey." in processor.apply_chat_template(chat, tokenize=False)
