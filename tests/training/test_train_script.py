"""`sugar-hf train` from files on disk to a model that loads, retrieves and generates."""

import json
import re
import runpy
from pathlib import Path

import datasets
import pytest
import torch
from builders import build_tiny_llava, picture
from hub_stand_in import put_in_place
from tiny_teachers import save_tiny_teachers
from transformers import AutoModel, AutoProcessor, pipeline

from sugar_hf import picturebook
from sugar_hf.data import BadSampleError
from sugar_hf.model import SugarForConditionalGeneration

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script(train_sugar):
    return train_sugar


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A plain vision-language model, teachers, and a JSONL of chat messages with images beside it."""
    folder = tmp_path_factory.mktemp("files")
    model, processor = build_tiny_llava()
    model.save_pretrained(folder / "vlm")
    processor.save_pretrained(folder / "vlm")
    save_tiny_teachers(folder)
    (folder / "images").mkdir()
    rows = []
    for i in range(6):
        picture(i).save(folder / "images" / f"{i}.png")
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"What is picture {i}?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": f"A cat and {i} dogs."}]},
        ]
        rows.append({"id": f"row-{i}", "messages": turns, "images": [f"{i}.png"]})
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(files, output, *more):
    teachers = [part for role in ("clip", "dino", "text") for part in (f"--{role}", str(files / role))]
    settings = (
        f"--model {files / 'vlm'} --dataset {files / 'chat.jsonl'} --image_root {files / 'images'} "
        f"--output_dir {output} --retrieval_dim 16 --max_steps 2 --per_device_train_batch_size 3 "
        "--use_cpu --report_to none --save_steps 1 "
        "--teacher_device cpu"
    )
    return [*settings.split(), *teachers, *more]


@pytest.mark.parametrize("teachers", [True, False])
def test_pairs_and_chats_with_a_share_for_each(script, files, tmp_path, teachers):
    pairs = [
        {"query": {"image": f"{i}.png"}, "positives": [f"A cat and {i} dogs."], "negatives": ["x"]} for i in range(6)
    ]
    (files / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    parts = [{"path": str(files / name), "weight": weight} for name, weight in (("pairs.jsonl", 2), ("chat.jsonl", 1))]
    options = ["--dataset", json.dumps(parts), "--alpha", "1", "--logging_steps", "1"]
    script.main(command(files, tmp_path, *options, *([] if teachers else ["--no_teacher"])))
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert max(entry["loss_structure"] for entry in state["log_history"] if "loss_structure" in entry) > 0
    assert (tmp_path / "_teacher_cache").exists() == teachers


def test_all_weights(script, files, tmp_path):
    script.main(command(files, tmp_path, "--eval_size", "2", "--format", "chat"))
    model = AutoModel.from_pretrained(tmp_path)
    assert isinstance(model, SugarForConditionalGeneration)
    inputs = AutoProcessor.from_pretrained(tmp_path)([["A cat.", picture(1)]])
    embeddings, mask = model.get_retrieval_embeddings(**inputs)
    assert embeddings.shape == (1, 2, 16)
    assert mask.all()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    retrieve = pipeline("sugar-retrieval", model=str(tmp_path))
    [best] = retrieve("a cat", candidates=[picture(1), picture(2)], top_k=1)
    assert best["index"] in (0, 1)


def test_dataset_may_be_a_name_on_the_hub(script, monkeypatch):
    """Whatever form its rows have, and under the same names in every run."""
    turns = [{"role": "user", "content": "What is in the picture?"}, {"role": "assistant", "content": "A cat."}]
    rows = datasets.Dataset.from_list([{"messages": turns, "images": [picture(number)]} for number in range(2)])
    rows = rows.cast_column("images", datasets.List(datasets.Image()))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or rows)
    loaded = [script.Source("someone/pictures", split=split).load(seed=0) for split in ("train", "train", "test")]
    assert asked == [("someone/pictures", split) for split in ("train", "train", "test")]
    assert loaded[0].to_list() == loaded[1].to_list()
    assert all(source.startswith("someone/pictures/test#") for source in loaded[2]["source"])
    assert [message["role"] for message in loaded[0][0]["messages"]] == ["user", "assistant"]
    assert len(loaded[0][0]["images"]) == 1
    with pytest.raises(FileNotFoundError):
        script.Source("no/such/file.json").load(seed=0)


def test_lora_saves_the_adapter_and_the_merged_model(script, files, tmp_path):
    script.main(command(files, tmp_path, "--lora", "--lora_r", "4", "--lora_alpha", "8"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter_config.json").exists()
    model = AutoModel.from_pretrained(tmp_path)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    # what examples/merge_adapter.py makes of the adapter is the same
    settings = f"--output {tmp_path / 'merged'} --dtype float32 --retrieval_dim 16"
    runpy.run_path(str(EXAMPLES / "merge_adapter.py"))["main"](
        [str(files / "vlm"), str(tmp_path / "adapter"), *settings.split()]
    )
    merged = AutoModel.from_pretrained(tmp_path / "merged").state_dict()
    assert merged.keys() == model.state_dict().keys()
    assert all(torch.equal(merged[name], value) for name, value in model.state_dict().items())
    assert AutoProcessor.from_pretrained(tmp_path / "merged").chat_template is not None


def test_a_run_is_pushed_with_the_card_of_its_training(script, files, tmp_path, monkeypatch):
    hub = put_in_place(monkeypatch, tmp_path / "hub")
    push = [
        "--lora",
        "--lora_r",
        "4",
        "--push_to_hub",
        "--hub_model_id",
        "me/run",
        "--hub_strategy",
        "end",
        "--logging_steps",
        "1",
    ]
    script.main(command(files, tmp_path / "run", *push, "--push_to", "me/copy"))
    assert len(hub.commits) == 2
    for name in ("me/run", "me/copy"):
        assert "model.safetensors" in hub.files(name)
        assert not [file for file in hub.files(name) if "adapter" in file or file.endswith(".bin")]
        card = (hub.folder(name) / "README.md").read_text()
        assert "### Adapter\n\n- `default`: LORA, `r` 4" in card
        assert "### Losses" in card
        assert str(tmp_path) not in card
        assert str(files) not in card
    assert not (tmp_path / "run" / "adapter_config.json").exists()
    model = SugarForConditionalGeneration.from_pretrained(tmp_path / "run").state_dict()
    pushed = SugarForConditionalGeneration.from_pretrained(hub.folder("me/run")).state_dict()
    assert all(torch.equal(pushed[name], value) for name, value in model.items())


def test_sugar_checkpoint_is_trained_further(script, files, tmp_path):
    script.main(command(files, tmp_path / "first", "--alpha", "0"))
    script.main([*command(files, tmp_path / "second", "--max_steps", "1"), "--model", str(tmp_path / "first")])
    heads = [
        AutoModel.from_pretrained(tmp_path / name).retrieval_head.pooled_to_hidden.weight
        for name in ("first", "second")
    ]
    assert not torch.equal(*heads)
    torch.testing.assert_close(*heads, atol=1e-3, rtol=0)


def write(folder, text):
    (folder / "recipe.yaml").write_text(text)
    return str(folder / "recipe.yaml")


RECIPE = """
model: a-model
dataset:
  - {path: a.json, format: llava, size: 3}
  - {path: b, image_root: c}
output_dir: somewhere
learning_rate: 1e-4
warmup_steps: 0.03
bf16: false
lora: true
lora_target_modules: [q_proj, k_proj]
image_processor: {size: {shortest_edge: 16}}
label_kernel: gak
report_to: [none]
train_size: null
"""


def test_recipe_gives_options_and_the_command_line_wins(script, tmp_path):
    recipe = write(tmp_path, RECIPE)
    found, arguments = script.parse([recipe, "--use_cpu"])
    assert (found.model, found.lora, found.train_size) == ("a-model", True, None)
    assert found.lora_target_modules == ["q_proj", "k_proj"]
    assert script.sources(found.dataset, found) == [
        script.Source("a.json", "llava", size=3),
        script.Source("b", "auto", image_root="c"),
    ]
    assert (arguments.output_dir, arguments.learning_rate, arguments.warmup_steps) == ("somewhere", 1e-4, 0.03)
    assert (arguments.bf16, arguments.label_kernel, arguments.report_to) == (False, "gak", [])
    more = "--use_cpu --model other --lora false --lora_target_modules v_proj --learning_rate 1e-3 --dataset d.json"
    found, arguments = script.parse([recipe, *more.split(), "--label_kernel", "mean"])
    assert (found.model, found.lora, found.lora_target_modules) == ("other", False, ["v_proj"])
    assert (arguments.learning_rate, arguments.label_kernel, arguments.warmup_steps) == (1e-3, "mean", 0.03)
    assert script.sources(found.dataset, found) == [script.Source("d.json")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora: true\nlora_rank: 4\nlr: 1", r"recipe.yaml: no such option: lora_rank, lr\."),
        ("- lora", "recipe.yaml: a recipe has lines of the form"),
        ("learning_rate:", "recipe.yaml: learning_rate has no value"),
    ],
)
def test_bad_recipe_is_named(script, tmp_path, text, said):
    with pytest.raises(SystemExit, match=said):
        script.parse([write(tmp_path, text), "--use_cpu"])


def test_bad_value_is_named(script, tmp_path, capsys, subtests):
    for text, said in [
        ("lora: maybe", "--lora: .*maybe"),
        ("lora_r: many", "--lora_r.*: invalid int value: 'many'"),
        ("label_kernel: none", "--label_kernel.*: invalid choice: 'none'"),
        ("lora: true", "--dataset is missing"),
        ("dataset: a\nload_in_4bit: true", "--load_in_4bit without --lora"),
    ]:
        with subtests.test(text=text, said=said):
            with pytest.raises(SystemExit):
                script.parse([write(tmp_path, text), "--use_cpu", "--output_dir", str(tmp_path)])
            assert re.search(said, capsys.readouterr().err)


def test_bad_mix_is_named(script, subtests):
    for items, said in [
        ("[]", "list is empty"),
        ("[{format: llava}]", "dataset 1: give `path"),
        ("[{path: a}, {path: b, root: c}]", r"dataset 2 \(b\): no such key: root. There are path, format"),
        ("[{path: a, size: 0}]", "size is a number of rows"),
        ("[{path: a, weight: -1}]", "weight is a positive number"),
        ("[{path: a, weight: 1}, {path: b}]", "either all data sets of a mix have a weight, or none"),
    ]:
        with subtests.test(items=items, said=said), pytest.raises(SystemExit, match=said):
            script.sources(items, script.ScriptArguments())


def test_mix(script, files):
    path, images = str(files / "chat.jsonl"), str(files / "images")
    one = script.Source(path, image_root=images, size=4)
    two = script.Source(path, image_root=images)
    both = script.mix([one, two], seed=1)
    assert both["id"][:4] == script.mix([one], seed=1)["id"][:]  # in order: the trainer shuffles
    assert both["id"][4:] == [f"row-{i}" for i in range(6)]
    assert len(set(both["id"][:4])) == 4
    assert script.mix([one], seed=2)["id"][:] != script.mix([one], seed=1)["id"][:]
    with pytest.raises(SystemExit, match=r"chat.jsonl: size is 7, but there are 6 rows"):
        script.mix([script.Source(path, image_root=images, size=7)], seed=1)


def test_columns_may_be_dropped(script, tmp_path):
    """For all data sets, or for one of a mix; without it the films are an error."""
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Why?"}], "videos": ["film.mp4"]}) + "\n")
    for value, options in (
        (str(path), ["--drop_columns", "videos"]),
        (json.dumps([{"path": str(path), "drop_columns": ["videos"]}]), []),
    ):
        command = ["--dataset", value, "--output_dir", str(tmp_path), "--use_cpu", *options]
        found, _ = script.parse(command)
        assert len(script.load_data(found, seed=0)[0]) == 1
    with pytest.raises(BadSampleError, match="drop_columns"):
        script.Source(str(path)).load(seed=0)


def test_mix_with_weights_keeps_the_shares(script, tmp_path):
    folders = []
    for name in "ab":
        (tmp_path / name).mkdir()
        rows = [{"id": f"{name}{i}", "messages": [{"role": "document", "content": "Some words."}]} for i in range(200)]
        (tmp_path / name / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(str(tmp_path / name / "chat.jsonl"))
    parts = [script.Source(path, "chat", weight=weight) for path, weight in zip(folders, (3.0, 1.0), strict=True)]
    mixed = script.mix(parts, seed=0)["id"][:]
    assert mixed == script.mix(parts, seed=0)["id"][:]
    assert len(set(mixed)) == len(mixed)  # no row twice
    share = sum(name.startswith("a") for name in mixed) / len(mixed)
    assert abs(share - 0.75) < 0.07
    assert len(mixed) > 220


def test_system_message_and_template(script, files):
    found = script.ScriptArguments(system='Say "é" and {{ no more }}.')
    processor = script.load_processor(found, str(files / "vlm"))
    question = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
    own = {"role": "system", "content": [{"type": "text", "text": "My own."}]}

    def written(chat):
        return processor.decode(processor([chat], add_generation_prompt=True)["input_ids"][0])

    assert written([question]) == '<s>Say "é" and {{ no more }}. USER: Why? ASSISTANT:'
    assert written([own, question]) == "<s>My own. USER: Why? ASSISTANT:"
    found.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"  # for strings only
    processor = script.load_processor(found, str(files / "vlm"))
    assert written([{"role": "user", "content": "Why?"}]).endswith("and {{ no more }}.][Why?]")


def test_settings_of_the_image_processor_are_kept(script, files, tmp_path):
    found = script.ScriptArguments(image_processor="{do_center_crop: false, size: {height: 24, width: 24}}")
    processor = script.load_processor(found, str(files / "vlm"))
    processor.save_pretrained(tmp_path)
    for one in (processor, AutoProcessor.from_pretrained(tmp_path)):
        assert one.image_processor.do_center_crop is False
        assert one([["A cat.", picture(1)]])["pixel_values"].shape == (1, 3, 24, 24)
    found.image_processor = "{crops: 3}"
    with pytest.raises(SystemExit, match=r"image_processor: .*crops.* no settings of this one, which has"):
        script.load_processor(found, str(files / "vlm"))


def test_teacher_vectors_are_kept_until_the_data_change(script, files, tmp_path, monkeypatch):
    embedded = []
    embed = script.TripleTeacher._embed
    monkeypatch.setattr(
        script.TripleTeacher, "_embed", lambda self, rows, **more: embedded.extend(rows) or embed(self, rows, **more)
    )
    (tmp_path / "chat.jsonl").write_text((files / "chat.jsonl").read_text())

    def rows(*more):
        options = [*command(files, tmp_path / "run", f"--dataset={tmp_path / 'chat.jsonl'}"), *more]
        found, arguments = script.parse(options)
        return script.load_rows(found, arguments, script.load_processor(found, found.model))

    train, held_out = rows("--eval_size", "2")
    assert len(embedded) == 6
    assert len(list((tmp_path / "run" / "_teacher_cache").iterdir())) == 2  # of either set
    again, held_out_again = rows("--eval_size", "2", "--learning_rate", "1e-5")
    assert len(embedded) == 6
    assert train[:] == again[:]
    assert held_out[:] == held_out_again[:]
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "Hello."}], "images": []}) + "\n")
    kept = f"--teacher_cache={tmp_path / 'kept'}"
    assert len(rows(kept)[0]) == 7
    assert len(embedded) == 13
    assert rows(kept)[1] is None
    assert len(embedded) == 13
    assert (tmp_path / "kept").is_dir()


def test_one_encoder_can_be_the_teacher(script, files, tmp_path, capsys):
    encoder = ("--teacher_encoder", str(picturebook.checkpoint("mini-sugar")))
    words = command(files, tmp_path / "run")
    script.main([*words[: words.index("--clip")], *encoder])
    [part] = (tmp_path / "run" / "_teacher_cache").iterdir()
    assert set(datasets.Dataset.from_file(str(part))["teacher_fingerprint"][0].split("=")) > {"encoder"}
    with pytest.raises(SystemExit):
        script.main([*words, *encoder])
    assert "--teacher_encoder takes the place of --clip" in capsys.readouterr().err


def test_missing_model_is_said(script, files, tmp_path):
    with pytest.raises(SystemExit, match="--model is missing"):
        script.main(["--dataset", str(files / "chat.jsonl"), "--output_dir", str(tmp_path)])
