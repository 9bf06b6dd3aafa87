"""Every command of docs/benchmarks.md as it stands there, on tiny data and with tiny models in place of others."""

import json
import math
import re
import shlex
from pathlib import Path

import fixtures_choices
import fixtures_demon
import fixtures_knowledge
import fixtures_matching
import fixtures_retrieval
import fixtures_vqa
import pytest
from tiny_encoders import save_blip2, save_dual

from sugar_cli import main
from sugar_cli.train_command import parse, sources
from sugar_hf import picturebook
from sugar_hf.evaluation.benchmarks import judges
from sugar_hf.evaluation.benchmarks import runner as running
from sugar_hf.evaluation.benchmarks.paper_tables import TABLES
from sugar_hf.evaluation.benchmarks.report import cells
from sugar_hf.evaluation.benchmarks.runner import Models, run_task
from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
FIXTURES = (fixtures_vqa, fixtures_choices, fixtures_demon, fixtures_matching, fixtures_knowledge, fixtures_retrieval)
RAW = {name: write for fixtures in FIXTURES for name, write in fixtures.RAW.items()}
HUB = {name: write for fixtures in FIXTURES for name, write in fixtures.HUB.items()}
TASKS = all_tasks()
# Models that cannot be loaded by transformers.
NOT_HERE = {"VPG-C", "FROMAGe (d)", "FROMAGe (g+d)", "FROMAGe", "UNITER-L"}


def rows_of_the_page():
    """For each table its rows, as (name, commands); a row without commands has a sentence instead."""
    found = {}
    tables = re.split(r"^### Table ", PAGE.split("## The tables, row by row")[1], flags=re.MULTILINE)[1:]
    for text in tables:
        rows = re.split(r"^- \*\*", text, flags=re.MULTILINE)[1:]
        found["table" + text.split("\n")[0].strip()] = [(row.split("**")[0], commands_in(row)) for row in rows]
    return found


def commands_in(text):
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in blocks.splitlines()]
    return [line for line in lines if line.startswith("sugar-hf ")]


ROWS = rows_of_the_page()
CASES = [
    pytest.param(table, row, commands, id=f"{table}-{row}")
    for table, rows in ROWS.items()
    for row, commands in rows
    if commands
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data of every task in the official form, and what stands in for the models."""
    folder = tmp_path_factory.mktemp("world")
    for name, write in RAW.items():
        write(folder / "data" / name)
    vlm, sugar = picturebook.checkpoint("mini-vlm"), picturebook.checkpoint("mini-sugar")
    clip = picturebook.checkpoint("mini-clip")
    models = {
        "llava-hf/llava-1.5-7b-hf": vlm,
        "converted/vila-7b-hf": vlm,
        "openai/clip-vit-large-patch14-336": clip,
        "openai/clip-vit-large-patch14": clip,
        "openai/clip-vit-base-patch32": clip,
        "google/siglip-so400m-patch14-384": save_dual(folder / "siglip", "siglip"),
        "Salesforce/blip2-itm-vit-g": save_blip2(folder / "blip2"),
    }
    runs = re.findall(r"runs/\w+", PAGE)
    return folder, models | dict.fromkeys(runs, sugar)


class Marker:
    """A judge with an answer to every scheme."""

    def __init__(self, name):
        self.name = name

    def __call__(self, prompt, **options):
        return "8 7\nBoth are good." if "[Assistant 2]" in prompt else "0.5"


@pytest.fixture
def loaded_once(monkeypatch, world):
    """Models stay in memory from one command to the next, and no judge is called."""
    opened = world[1].setdefault("opened", {})

    def once(load):
        def find(*arguments, **options):
            key = (load.__name__, *map(str, arguments), *sorted(map(str, options.items())))
            if key not in opened:
                opened[key] = load(*arguments, **options)
            return opened[key]

        return find

    open_judge = judges.open_judge
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.setattr(judges, "open_judge", lambda spec: Marker(open_judge(spec).name))
    monkeypatch.setattr(running, "open_model", once(running.open_model))
    monkeypatch.setattr(running, "open_encoder", once(running.open_encoder))


def run(command, world, capsys):
    """Run a command in the folder of the data; the results that it prints."""
    _, models = world
    words = [models.get(word, word) for word in shlex.split(command)[1:]]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"] if words[0] == "evaluate" else words)
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return [json.loads(line) for line in said.out.splitlines()] if words[0] == "evaluate" else []


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize(("table", "row", "commands"), CASES)
def test_commands_fill_their_row(table, row, commands, world, monkeypatch, capsys):
    monkeypatch.chdir(world[0])
    filled = {}
    for command in commands:
        if command.startswith("sugar-hf train "):  # the recipe itself is run in tests/training
            words = [str(ROOT / word) if ".yaml" in word else word for word in shlex.split(command)[2:]]
            script, _ = parse([*words, "--use_cpu"])
            assert sources(script.dataset, script)
            continue
        for result in run(command, world, capsys):
            assert result["n"] > 0
            assert result["failed"] == []
            assert result["primary_metric"] in result["metrics"]
            assert all(math.isfinite(v) for v in result["metrics"].values() if isinstance(v, float))
            filled |= cells(result, TASKS)
    columns = TABLES[table].rows.get(row, TABLES[table].rows["Sugar"] if table == "table4b" else {})
    for column in columns:
        assert TABLES[table].aliases.get(column, f"{table}/{column}") in filled


def test_every_row_of_the_paper_is_on_the_page():
    assert list(ROWS) == list(TABLES)
    for table, rows in ROWS.items():
        names = [name for name, _ in rows]
        ours = ["w/o structure loss"] if table == "table4b" else []
        assert names == [*TABLES[table].rows, *ours]
        assert {name for name, commands in rows if not commands} <= NOT_HERE


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("command", commands_in(PAGE.split("## Beyond the paper")[1].split("## The tables")[0]))
def test_commands_beyond_the_paper(command, world, monkeypatch, capsys):
    monkeypatch.chdir(world[0])
    for result in run(command, world, capsys):
        assert result["failed"] == []
        assert 0 <= result["metrics"][result["primary_metric"]] <= 100


@pytest.mark.usefixtures("loaded_once")
def test_commands_at_the_top_of_the_page(world, monkeypatch, capsys):
    monkeypatch.chdir(world[0])
    commands = commands_in(PAGE.split("## What to get")[0])
    assert len(commands) == 4
    sugar = world[1]["runs/vila_7b"]
    for command in commands:
        if command.endswith("--list"):
            with pytest.raises(SystemExit):
                main(shlex.split(command)[1:])
            listed = capsys.readouterr().out
            assert all(f"{name} " in listed for name in TASKS)
        else:
            run(command, world, capsys)
    report = Path("report.md").read_text()
    assert TABLES["table3b"].title in report
    assert f"**{Path(sugar).name}**" in report
    assert "model-index" in Path("index.yaml").read_text()


def test_every_task_and_its_options_are_on_the_page():
    sections = re.findall(r"^### ([\w, -]+)$", PAGE.split("## The tables")[0], flags=re.MULTILINE)
    named = [name.strip() for section in sections for name in section.split(",")]
    assert sorted(named) == sorted(TASKS)


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("name", sorted(HUB))
def test_every_task_runs_from_rows(name, tmp_path):
    HUB[name](tmp_path / "data")
    options = {"images": str(tmp_path / "data")} if name == "coco" else {}
    source = Source(name, str(tmp_path / "data"), options=options)
    result = run_task(TASKS[name], source, Models(picturebook.checkpoint("mini-sugar")), tmp_path / "results")
    assert result["n"] > 0
    assert result["failed"] == []


def test_every_task_has_official_files_to_run_on():
    assert sorted({TASKS[name].folder or name for name in TASKS} - set(RAW)) == []


@pytest.mark.usefixtures("loaded_once")
def test_a_task_that_cannot_be_run_does_not_stop_the_others(world, monkeypatch, capsys):
    monkeypatch.chdir(world[0])
    model = picturebook.checkpoint("mini-sugar")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--task", "vist,gqa", "--data", "data/gqa", "--output", "some", "--model", model])
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "vist: vist: no" in said.err
    assert "Error: could not run vist, see above" in said.err
    assert f"GQA: {model}, n = 4" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one; --list shows them"),
        (["--task", "vqa"], "no task vqa"),
        (["--task", "gqa", "--option", "ocr=on"], "'ocr=on': write KEY=VALUE; the task has none"),
        (["--task", "textvqa", "--option", "ocr"], "'ocr': write KEY=VALUE; there are ocr"),
    ],
)
def test_wrong_commands(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *arguments])
    assert ended.value.code == 2
    assert message in " ".join(re.sub("[│╭╮╰╯─]", "", capsys.readouterr().err).split())
