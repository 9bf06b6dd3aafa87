"""What trainers upload: a repository that loads without this package, a card, and nothing that only the run needs."""

import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from hub_stand_in import MODEL_FILES, put_in_place
from huggingface_hub import EvalResultEntry, ModelCard, parse_eval_result_entries
from peft import PeftModel, get_peft_model
from training_tools import make_dataset, make_rows, make_sugar, make_trainer, sentence
from transformers.utils.hub import PushInProgress

from sugar_hf.data import to_sample
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.checkpoint_sugar import CODE_FILES
from sugar_hf.training import SugarSFTConfig, SugarSFTTrainer, hub_upload, sugar_lora_config
from sugar_hf.training.training_record import example, losses_table

TOKEN = "hf_a_secret_of_mine"
CHECKPOINT = (MODEL_FILES - {*CODE_FILES, "README.md"}) | {
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
}
PUSH = {"push_to_hub": True, "hub_model_id": "me/sugar", "hub_token": TOKEN}

# Runs where `import sugar_hf` fails.
STRANGER = """
import sys
sys.modules["sugar_hf"] = None
import torch
from transformers import AutoModel, AutoProcessor, pipeline
from sentence_transformers import SentenceTransformer

folder, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    embeds = model(**processor([["A cat.", "A dog."]])).retrieval_embeds
found = pipeline("sugar-retrieval", model=folder, trust_remote_code=True, device="cpu")("A cat.", ["A dog."])
sentence = SentenceTransformer(folder, trust_remote_code=True, device="cpu").encode(["A cat."])
torch.save({"embeds": embeds, "found": found[0]["score"], "sentence": torch.tensor(sentence)}, out)
"""


def as_a_stranger(folder: Path, place: Path) -> dict:
    """What a process gives that has the repository, and not this package."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", STRANGER, str(folder), str(place / "out.pt")]
    subprocess.run(command, env=environment, cwd=place, check=True, stdin=subprocess.DEVNULL)
    return torch.load(place / "out.pt")


def embed(model, processor, sample=("A cat.", "A dog.")):
    with torch.no_grad():
        return model.eval()(**processor([list(sample)])).retrieval_embeds


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return put_in_place(monkeypatch, tmp_path / "hub")


def test_a_pushed_model_works_without_the_package_and_holds_nothing_of_the_run(tmp_path, hub):
    trainer = make_trainer(tmp_path / "run", hub_strategy="end", save_strategy="steps", save_steps=1, **PUSH)
    trainer.train()
    assert not hub.commits
    Path(tmp_path / "run" / "runs").mkdir()
    Path(tmp_path / "run" / "runs" / "events").write_text("log")
    Path(tmp_path / "run" / "notes.txt").write_text("mine")
    commit = trainer.push_to_hub(license="apache-2.0", private=True)
    assert commit.commit_url == "https://huggingface.co/me/sugar/commit/1"
    assert hub.files("me/sugar") == MODEL_FILES
    for name in MODEL_FILES:
        data = (hub.folder("me/sugar") / name).read_bytes()
        assert str(tmp_path).encode() not in data, name
        assert TOKEN.encode() not in data, name
    assert hub.commits[0]["token"] == TOKEN
    found = as_a_stranger(hub.folder("me/sugar"), tmp_path)
    mine = embed(trainer.model, trainer.processing_class)
    assert torch.allclose(found["embeds"], mine, atol=1e-6)
    assert found["found"] == pytest.approx(
        float(mine[0, 0] @ embed(trainer.model, trainer.processing_class, ["A dog."])[0, 0])
    )
    assert torch.allclose(found["sentence"], mine[0, :1], atol=1e-6)
    assert not list((tmp_path / "run").glob("_hub-*"))


STRATEGIES = {
    "end": [],
    "every_save": [("", "step 1"), ("", "step 2")],
    "checkpoint": [("", "step 1"), ("last-checkpoint", "step 1"), ("", "step 2"), ("last-checkpoint", "step 2")],
    "all_checkpoints": [("", "step 1"), ("checkpoint-1", "step 1"), ("", "step 2"), ("checkpoint-2", "step 2")],
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_pushes_what_it_says(tmp_path, hub, strategy):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make_trainer(
        tmp_path / "run",
        hub_strategy=strategy,
        save_strategy="steps",
        save_steps=1,
        eval_dataset=make_dataset(make_sugar()[1]),
        **(best if strategy == "checkpoint" else {}),
        **PUSH,
    )
    trainer.train()
    said = [(commit["path"], commit["commit_message"]) for commit in hub.commits]
    expected = [
        (path, f"Training in progress, {step}" + (", checkpoint" if path else ""))
        for path, step in STRATEGIES[strategy]
    ]
    assert said == expected
    for commit in hub.commits:
        assert commit["files"] == (CHECKPOINT if commit["path"] else MODEL_FILES)
    folder = hub.folder("me/sugar")
    for file in folder.rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file
    if strategy == "end":
        return
    assert "Training is in progress: this is step 2." in (folder / "README.md").read_text()
    assert torch.equal(
        embed(SugarForConditionalGeneration.from_pretrained(folder), trainer.processing_class),
        embed(SugarForConditionalGeneration.from_pretrained(tmp_path / "run/checkpoint-2"), trainer.processing_class),
    )
    if strategy == "checkpoint":
        again = make_trainer(tmp_path / "again", max_steps=3)
        again.train(resume_from_checkpoint=str(folder / "last-checkpoint"))
        assert again.state.global_step == 3


def test_save_model_pushes_where_the_base_trainer_does(tmp_path, hub):
    trainer = make_trainer(tmp_path / "run", **PUSH)
    trainer.save_model()
    assert [commit["commit_message"] for commit in hub.commits] == ["Model save"]
    assert hub.files("me/sugar") == MODEL_FILES
    other = make_trainer(tmp_path / "other")
    other.save_model()
    assert len(hub.commits) == 1
    assert not list((tmp_path / "other").glob("*_sugar.py"))  # what is written while training stays small
    other.push_to_hub()  # without the argument: the repository has the folder's name
    assert hub.files("me/other") == MODEL_FILES


def test_an_upload_has_what_was_saved_even_if_the_run_goes_on(tmp_path, hub, monkeypatch):
    waiting = []
    upload = hub.upload_folder

    def later(*, run_as_future=False, **options):
        job = Future()
        waiting.append(lambda: job.set_result(upload(**options)))
        return job

    def finish(self):
        while waiting:
            waiting.pop(0)()

    monkeypatch.setattr(hub, "upload_folder", later)
    monkeypatch.setattr(PushInProgress, "wait_until_done", finish)
    trainer = make_trainer(
        tmp_path / "run",
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        hub_always_push=True,
        **PUSH,
    )
    trainer.train()
    assert [commit["files"] for commit in hub.commits] == [MODEL_FILES] * 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-3"]


def test_an_upload_that_fails_is_named(tmp_path, hub, monkeypatch, caplog):
    def fail(**options):
        job = Future()
        job.set_exception(OSError("413 too large"))
        return job

    monkeypatch.setattr(hub, "upload_folder", fail)
    trainer = make_trainer(tmp_path / "run", save_strategy="steps", save_steps=2, **PUSH)
    trainer.train()
    assert "me/sugar failed: 413 too large" in caplog.text
    with pytest.raises(OSError, match="413"):
        trainer.push_to_hub()


def test_what_a_killed_run_left_is_removed(tmp_path, hub):
    left = tmp_path / "run" / "_hub-abc"
    left.mkdir(parents=True)
    make_trainer(tmp_path / "run", **PUSH)
    assert not left.exists()


# ---- Adapters ----


def adapted(folder: Path, name: str | None = None, **kwargs):
    base, _ = make_sugar()
    base.save_pretrained(folder)
    base = SugarForConditionalGeneration.from_pretrained(folder)
    model = get_peft_model(base, sugar_lora_config(base, r=4, lora_alpha=8))
    if name is not None:
        model.peft_config["default"].base_model_name_or_path = name
    return model


def test_an_adapter_on_a_folder_of_mine_is_pushed_merged(tmp_path, hub):
    trainer = make_trainer(
        tmp_path / "run",
        model=adapted(tmp_path / "base"),
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=2,
        **PUSH,
    )
    trainer.train()
    assert hub.files("me/sugar") == MODEL_FILES
    hub.commits.clear()
    trainer.push_to_hub()
    assert hub.commits[0]["files"] == MODEL_FILES
    folder = hub.folder("me/sugar")
    assert not [file for file in folder.iterdir() if str(tmp_path).encode() in file.read_bytes()]
    card = (folder / "README.md").read_text()
    assert "merged into its weights" in card
    assert "- `default`: LORA, `r` 4, `lora_alpha` 8, `lora_dropout` 0.0, trained whole: `retrieval_head`" in card
    merged, mine = SugarForConditionalGeneration.from_pretrained(folder), trainer.processing_class
    assert torch.allclose(embed(merged, mine), embed(trainer.model, mine), atol=1e-5)
    assert "model.safetensors" not in {
        path.name for path in (tmp_path / "run").iterdir()
    }  # what it saves is the adapter


def test_an_adapter_on_a_base_of_the_hub_is_pushed_beside_the_merged_model(tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the name of the base is that of a folder
    monkeypatch.setattr(hub_upload, "is_hub_name", lambda name: name == "you/base")
    model = adapted(tmp_path / "you" / "base", "you/base")
    trainer = make_trainer(
        tmp_path / "run", model=model, learning_rate=1e-2, save_strategy="steps", save_steps=2, **PUSH
    )
    trainer.train()
    alone = {
        f"adapter/{name}"
        for name in MODEL_FILES - {*CODE_FILES, "README.md", "model.safetensors", "generation_config.json"}
    }
    alone |= {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "README.md"}
    assert hub.files("me/sugar") == alone  # cheap while training goes on
    assert "there is the adapter alone" in (hub.folder("me/sugar") / "README.md").read_text()
    trainer.push_to_hub()
    assert hub.files("me/sugar") == alone | MODEL_FILES
    folder, processor = hub.folder("me/sugar"), trainer.processing_class
    mine = embed(trainer.model, processor)
    assert torch.allclose(embed(SugarForConditionalGeneration.from_pretrained(folder), processor), mine, atol=1e-5)
    base = SugarForConditionalGeneration.from_pretrained("you/base")
    assert torch.equal(embed(PeftModel.from_pretrained(base, folder / "adapter"), processor), mine)
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "you/base"
    assert '`PeftModel.from_pretrained(base, "me/sugar", subfolder="adapter")`' in card.text
    assert "processor_config.json" in {path.name for path in (folder / "adapter").iterdir()}
    assert SugarProcessor.from_pretrained(folder / "adapter")


def test_an_adapter_whose_base_no_one_could_find_is_refused_before_training(tmp_path, hub):
    base, _ = make_sugar()
    model = get_peft_model(base, sugar_lora_config(base, r=4))
    with pytest.raises(ValueError, match=r"adapter 'default' has no name.*save_pretrained"):
        make_trainer(tmp_path / "run", model=model, **PUSH)


# ---- Cards ----


def test_the_card_tells_how_the_model_was_trained(tmp_path, hub):
    rows = make_rows()
    rows[0]["messages"][0]["content"][0]["text"] = "<script>alert(1)</script> " + sentence(1)
    trainer = make_trainer(
        tmp_path / "run",
        rows=rows,
        learning_rate=2e-3,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset={"stories": make_dataset(make_sugar()[1])},
        **PUSH,
    )
    trainer.train()
    (tmp_path / "run" / "emissions.csv").write_text(
        "timestamp,emissions,energy_consumed,country_name,cpu_model\n"
        "0,0.001,0.02,Norway,A\n1,0.002,0.04,Norway,A <b>\n"
    )
    trainer.create_model_card(
        license="apache-2.0",
        tags="mine",
        dataset_tags="user/stories",
        finetuned_from="llava-hf/llava-1.5-7b-hf",
        description="A *paragraph* of mine.",
        results={
            "user/vist": {"task": "vist", "primary_metric": "r@1", "metrics": {"r@1": 50.0, "r@5": 70.0}, "n": 100},
            "a test of mine": {"accuracy": 0.5},
        },
    )
    card = ModelCard.load(tmp_path / "run" / "README.md")
    data, text = card.data, card.text
    assert data.base_model == "llava-hf/llava-1.5-7b-hf"
    assert data.datasets == ["user/stories"]
    assert data.license == "apache-2.0"
    assert {"sugar", "generated_from_trainer", "mine"} <= set(data.tags)
    assert data.co2_eq_emissions["emissions"] == 2.0
    assert [(r.dataset_type, r.metric_name, r.metric_value) for r in data.eval_results] == [
        ("user/vist", "r@1", 50.0),
        ("user/vist", "r@5", 70.0),
        ("custom", "accuracy", 0.5),
    ]
    assert text.startswith("\n# sugar\n\nA *paragraph* of mine.\n")
    assert "(`llava-hf/llava-1.5-7b-hf`)" in text
    for line in (
        "- **Base model:** [llava-hf/llava-1.5-7b-hf](https://huggingface.co/llava-hf/llava-1.5-7b-hf)",
        "| user/vist | r@5 | 70 |",
        "### Training data",
        "`tests`, 8 samples. The first examples:",
        '2. system: "Be brief."; user: (image of 40 × 32) "What is in the picture?"; assistant: "Two green apples."',
        "### Evaluation data stories",
        "- `learning_rate`: `0.002`",
        "- Hardware: 1 × CPU",
        "sugar-hf serve me/sugar",
        "0.002 kg of CO2, 0.04 kWh, in Norway.",
    ):
        assert line in text, line
    losses = [line for line in text.splitlines() if line.startswith("| Step")]
    evaluated = " | ".join(f"eval_stories_{name}" for name in ("loss", "loss_lm", "loss_structure"))
    assert losses == [f"| Step | loss | loss_lm | loss_structure | {evaluated} |"]
    assert "<script" not in text
    assert str(tmp_path) not in str(card)
    assert TOKEN not in str(card)
    assert "output_dir" not in text
    (file,) = (tmp_path / "run" / ".eval_results").iterdir()
    assert parse_eval_result_entries(yaml.safe_load(file.read_text())) == [
        EvalResultEntry("user/vist", "vist", 50.0, notes="n = 100")
    ]
    trainer.push_to_hub(results={"user/vist": {"recall": 1.0}})
    assert hub.files("me/sugar") == MODEL_FILES | {".eval_results/user_vist_default.yaml"}
    with pytest.raises(ValueError, match=r"results\['user/vist'\] has no numbers"):
        trainer.create_model_card(results={"user/vist": {"n": 3}})


def test_what_the_trainer_measures_itself_stands_among_the_results(tmp_path):
    trainer = make_trainer(
        tmp_path / "run",
        eval_dataset=make_dataset(make_sugar()[1]),
        eval_strategy="steps",
        eval_steps=1,
        compute_metrics=lambda prediction: {"R@1": 0.25},
    )
    trainer.train()
    trainer.create_model_card(results={"user/vist": {"R@1": 0.5}})
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert [(r.dataset_name, r.metric_name, r.metric_value) for r in card.data.eval_results] == [
        ("evaluation set", "R@1", 0.25),
        ("user/vist", "R@1", 0.5),
    ]
    assert "| evaluation set | R@1 | 0.25 |" in card.text
    assert [path.name for path in (tmp_path / "run" / ".eval_results").iterdir()] == ["user_vist_default.yaml"]


def test_examples_of_any_rows():
    path = {"bytes": None, "path": "/home/me/secret.png"}
    assert example({"prompt": "A | *b*", "images": [path]}) == r'prompt: "A \| \*b\*"; images: [(image)]'
    assert example({"messages": [{"role": "user", "content": "x" * 300}]}) == f'user: "{"x" * 200} …"'
    rows = [to_sample(row) for row in make_rows()[:1]]
    assert rows  # rows of the schema are in the test above
    assert example({"text": ["a", 1, None], "deep": {"b": object()}}) == 'text: ["a", 1, None]; deep: {b: object}'


def test_long_losses_are_thinned():
    history = [{"step": step, "loss": 1.0 / step} for step in range(1, 1001)]
    history += [{"step": step, "eval_loss": 2.0} for step in (500, 1000)]
    lines = losses_table(history).splitlines()[2:]
    assert len(lines) <= 20
    steps = [int(line.split("|")[1]) for line in lines]
    assert steps == sorted(steps)
    assert {1, 500, 1000} <= set(steps)
    assert losses_table([{"step": 1, "learning_rate": 0.1}]) is None


def test_names_of_data_sets_come_from_where_their_files_came_from(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    data: Dataset = trainer.train_dataset
    data.info.download_checksums = {f"hf://datasets/user/stories@{'a' * 40}/train.parquet": {"num_bytes": 1}}
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.datasets == ["user/stories"]
    assert "[user/stories](https://huggingface.co/datasets/user/stories), 8 samples." in card.text


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_trls_trainer_pushes_the_same(tmp_path, hub):
    model, processor = make_sugar()
    trainer = SugarSFTTrainer(
        model,
        SugarSFTConfig(
            str(tmp_path / "run"),
            max_steps=1,
            per_device_train_batch_size=4,
            save_strategy="steps",
            save_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            **PUSH,
        ),
        train_dataset=make_dataset(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.push_to_hub(dataset_name="user/stories")
    assert [commit["files"] for commit in hub.commits] == [MODEL_FILES, MODEL_FILES]
    card = ModelCard.load(hub.folder("me/sugar") / "README.md")
    assert card.data.datasets == ["user/stories"]
    assert {"trl", "sft", "sugar"} <= set(card.data.tags)
