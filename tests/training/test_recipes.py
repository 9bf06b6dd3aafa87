"""Every recipe of examples/recipes, run as a user runs it, against a tiny model of its family and tiny data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from builders import BUILDERS, picture
from tiny_teachers import save_tiny_teachers
from transformers import AutoModel, AutoProcessor

from sugar_hf.model import SugarForConditionalGeneration

SCRIPT = Path(__file__).parents[2] / "examples" / "train_sugar.py"
RECIPES = sorted((SCRIPT.parent / "recipes").glob("*.yaml"))
# The template of llava-hf/llava-1.5-7b-hf.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# The families whose tiny models stand in for a recipe's model. SmolVLM-256M is an Idefics 3, SmolVLM2 is not.
TWINS = {
    "llava15_7b": ["llava"],
    "vila_7b": ["llava"],
    "qwen3_vl_4b": ["qwen3_vl"],
    "smolvlm_256m": ["idefics3", "smolvlm"],
}
CASES = [pytest.param(path, twin, id=f"{path.stem}-{twin}") for path in RECIPES for twin in TWINS[path.stem]]


@pytest.fixture(scope="module")
def script(train_sugar):
    return train_sugar


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Teachers, and four rows in each of the formats that the recipes mix."""
    folder = tmp_path_factory.mktemp("recipes")
    save_tiny_teachers(folder)
    (folder / "images").mkdir()
    (folder / "pairs").mkdir()
    instructions, documents = [], []
    for i in range(4):
        picture(i).save(folder / "images" / f"{i}.png")
        picture(10 + i).save(folder / "pairs" / f"{i}.jpg")
        (folder / "pairs" / f"{i}.txt").write_text(f"A dog and {i} yellow balls.")
        turns = [{"from": "human", "value": f"<image>\nWhat is it {i}?"}, {"from": "gpt", "value": "A red house."}]
        instructions.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
        texts = [f"The sun rises {i} times.", "A bird flies over the lake."]
        documents.append({"text_list": texts, "image_info": [{"image_name": f"{i}.png", "matched_text_index": 1}]})
    (folder / "llava.json").write_text(json.dumps(instructions))
    (folder / "mmc4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of the tiny models, by family, made when they are first asked for."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def save(family):
        if family not in made:
            for part in BUILDERS[family]():
                part.save_pretrained(folder / family)
            made[family] = str(folder / family)
        return made[family]

    return save


def tiny_data(recipe, files):
    """The recipe's own list of data sets, with tiny ones in their places and two rows where it wants many."""
    places = {
        "llava": {"path": str(files / "llava.json"), "image_root": str(files / "images")},
        "mmc4": {"path": str(files / "mmc4.jsonl"), "image_root": str(files / "images")},
        "pairs": {"path": str(files / "pairs")},
    }
    return [{**source, **places[source["format"]], "size": 2} for source in recipe["dataset"]]


def command(path, model, files, output):
    recipe = yaml.safe_load(path.read_text())
    settings = (
        "--max_steps 2 --per_device_train_batch_size 3 --logging_steps 1 --save_strategy no --dtype float32 "
        "--bf16 false --use_cpu --report_to none --teacher_device cpu --dataloader_num_workers 0 --disable_tqdm true"
    )
    return [
        str(path),
        f"--model={model}",
        f"--dataset={json.dumps(tiny_data(recipe, files))}",
        f"--output_dir={output}",
        f"--teacher_cache={output}/teacher_vectors",
        *(f"--{role}={files / role}" for role in ("clip", "dino", "text")),
        *settings.split(),
    ]


@pytest.mark.parametrize("name", ["llava15_7b", "vila_7b"])
def test_the_paper_s_template(name, script, files, models, tmp_path):
    path = next(path for path in RECIPES if path.stem == name)
    found, _ = script.parse(command(path, models("llava"), files, tmp_path))
    if found.chat_template is None:
        found.chat_template = LLAVA_TEMPLATE
    processor = script.load_processor(found, models("llava"))
    question = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    chat = [{"role": "user", "content": question}]
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    asked = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert asked == f"{system} USER: <image>\nWhat is it? ASSISTANT:"
    answered = [*chat, {"role": "assistant", "content": [{"type": "text", "text": "A house."}]}]
    end = " " if name == "llava15_7b" else "</s>"
    assert processor.apply_chat_template(answered) == f"{asked} A house.{end}"
    own = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert processor.apply_chat_template([own, *chat]).startswith("Be brief. USER: ")


@pytest.mark.slow
def test_a_recipe_runs_in_two_processes(files, models, tmp_path):
    path = next(path for path in RECIPES if path.stem == "llava15_7b")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*launch, str(SCRIPT), *command(path, models("llava"), files, tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("saved to") == 1  # by one of the two
    assert len(list((tmp_path / "teacher_vectors").iterdir())) == 1
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert isinstance(AutoModel.from_pretrained(tmp_path), SugarForConditionalGeneration)


def test_every_recipe_has_a_twin():
    assert {path.stem for path in RECIPES} == set(TWINS)


@pytest.mark.parametrize(("path", "twin"), CASES)
def test_recipe_trains_its_twin(path, twin, script, files, models, tmp_path):
    asked, arguments = script.parse(command(path, models(twin), files, tmp_path))
    assert (asked.lora, asked.lora_r, asked.lora_alpha) == (True, 128, 256)
    assert asked.lora_target_modules == ["q_proj", "v_proj"]
    assert (arguments.learning_rate, arguments.lr_scheduler_type, arguments.warmup_steps) == (1e-4, "cosine", 0.03)
    assert (arguments.optim, arguments.max_steps) == ("adamw_torch", 2)

    torch.manual_seed(0)
    script.main(command(path, models(twin), files, tmp_path))
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (128, 256)
    assert adapter["modules_to_save"] == ["retrieval_head"]
    model = AutoModel.from_pretrained(tmp_path)
    before = SugarForConditionalGeneration.from_backbone(models(twin)).vlm
    moved = {
        name
        for (name, ours), theirs in zip(model.vlm.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(ours, theirs)
    }
    decoder = next(name for name, module in model.vlm.named_modules() if module is model.get_decoder())
    layers = range(model.config.get_text_config().num_hidden_layers)
    assert moved == {f"{decoder}.layers.{i}.self_attn.{p}_proj.weight" for i in layers for p in "qv"}

    processor = AutoProcessor.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(5)}, {"type": "text", "text": "What?"}]}]
    embeddings, mask = model.get_retrieval_embeddings(**processor([chat]))
    assert embeddings.shape == (1, 2, asked.retrieval_dim)
    assert mask.all()
    prompt = processor([chat], add_generation_prompt=True)
    written = processor.decode(prompt["input_ids"][0])
    assert (asked.system or "") in written
    saved = processor.image_processor.to_dict()
    for name, value in yaml.safe_load(asked.image_processor or "{}").items():
        assert saved[name] == value or saved[name].items() >= value.items()
    assert model.generate(**prompt, max_new_tokens=2).shape[0] == 1
