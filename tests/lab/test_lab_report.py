import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from lab_tools import entry, write
from safetensors.torch import load_file

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_lab.card import ROW, figures, ship, write_card
from sugar_lab.lab_gallery import make_gallery
from sugar_lab.lab_report import main, make_document
from sugar_lab.measurements import read_results
from sugar_lab.table_layout import OWN, PAPER, POOL, in_order, matches, missing
from sugar_lab.twins import Twin

SVG = "{http://www.w3.org/2000/svg}svg"


def some():
    """A few rows of a few tables."""
    found = [
        entry("table1", "lm-only", "VQAv2", 60.0, 62.0, chance=10.0),
        entry("table1", "mse", "VQAv2", 66.0, 68.0, chance=10.0),
        entry("table1", "lm-only", "POPE", 70.0, 74.0),
        entry("table1", "mse", "POPE", 71.0, 75.0),
        entry("table1", "infonce", "POPE", 90.0),
        entry("table4b", "alpha-10", "POPE", 50.0),
        entry("table4b", "alpha-9", "POPE", 51.0),
        entry("order", "mse", "which is in order", 60.0, 61.0, chance=25.0),
        entry("manners", "mse", "politeness", 99.0),
    ]
    return found + [entry("table5", "mse", place, 60.0, 61.0, chance=50.0) for place in TABLES["table5"].columns]


def document(folder, entries, twins=()):
    out = make_document(write(folder / "lab", entries), folder / "lab" / "report.md", dict(twins), further=None)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The document of those few."""
    return document(tmp_path_factory.mktemp("lab"), some())


def section(text, title):
    return text.split(f"### {title}\n")[1].split("\n#")[0]


def test_every_table_of_the_paper_is_there_with_all_its_rows(text):
    for table in TABLES.values():
        part = section(text, table.title)
        for row, cells in table.rows.items():
            line = next(line for line in part.splitlines() if line.startswith(f"| {row} (paper) |"))
            assert [f"{cell:.1f}" for cell in cells.values()] == re.findall(r"[\d.]+", line.split("(paper) |")[1])
    for name in ("objectives", "kernels", "order", "sweeps"):
        assert f"### {OWN[name].title}\n" in text


def test_our_rows_stand_below_the_papers_with_spread_and_the_best_bold(text):
    part = section(text, "Table 1: eleven benchmarks")
    lines = [re.sub(r" not run \|| - \|", "", line) for line in part.splitlines() if line.startswith("| ")]
    assert lines[-5:] == [
        "| `lm-only` | 61.0 ± 1.4 | 72.0 ± 2.8 |",
        "| `infonce` | **90.0** |",
        "| `mse` | **67.0 ± 1.4** | 73.0 ± 2.8 |",
        "| chance | 10.0 |",
        "| measured on | 300 | 300 |",
    ]


def test_what_was_not_run_is_named(text):
    part = section(text, "Table 1: eleven benchmarks")
    assert "Not run: `base`, `disc-only`, `sugar`, `sugar-whitened`." in part
    assert "Columns that no row was measured on: GQA, VizWiz, SQA-I, VQA-T, MME-P" in part
    assert "| `infonce` | not run |" in part
    assert "Not run: `mini-clip`, `base`, `disc-only`, `infonce`, `mse`, `sugar`, `sugar-whitened`." in section(
        text, "Table 3c: Winoground"
    )
    assert "`delta-*`" in section(text, "Sweeps")
    whole = text.split("Rows that were not run at all: ")[1].split("\n")[0]
    assert "`last-token`" in whole
    assert "`mse`" not in whole
    assert "The training curves were not stored." in text
    assert "It was not made." in text


def test_each_row_of_every_layout_is_found_or_named(text):
    titles = {name: TABLES[name].title for name in TABLES} | {name: layout.title for name, layout in OWN.items()}
    for name, layout in [(name, layout) for name, layout in {**PAPER, **OWN}.items() if name != POOL]:
        part = section(text, titles[name])
        for pattern in layout.rows:
            names = [*pattern.split("|"), *(row for row in ("alpha-9", "alpha-10") if matches(pattern, row))]
            assert any(f"`{row}`" in part for row in names), f"{name}: {pattern}"


def test_sweeps_have_their_rows_by_number_and_the_ablation_does_not_repeat_them(text):
    rows = re.findall(r"^\| `(.+?)` \|", section(text, "Sweeps"), re.MULTILINE)
    assert rows == ["mse", "alpha-9", "alpha-10"]
    assert "| `alpha" not in section(text, "Table 4b: ablation")


def test_rows_that_stand_elsewhere_are_named(tmp_path):
    part = section(document(tmp_path, [*some(), entry("table1", "mean", "POPE", 1.0)]), "Table 1: eleven benchmarks")
    named = "Measured as well, and compared in table 4b or the tables that the paper lacks: `mean`."
    assert named in part
    assert "| `mean` |" not in part


def test_a_table_of_the_pool_is_there_if_it_was_measured(tmp_path, text):
    assert "### Size of the pool" not in text
    assert "### Size of the pool" in document(tmp_path, [entry("pool", "mse", "100", 1.0)])


def test_a_table_that_is_not_known_is_shown_all_the_same(text):
    assert "| `mse` | 99.0 |" in section(text, "Manners")


def test_a_column_that_the_paper_lacks_is_shown_beside_its_own(tmp_path):
    text = document(tmp_path, [entry("table7", "mse + own", "google", 12.0)])
    assert "|  | FVQA | WebQA | google |" in section(text, "Table 7: knowledge VQA, ROUGE-L")


def test_less_depth_is_better(tmp_path):
    text = document(tmp_path, [entry("table5", row, "depth", depth, depth) for row, depth in (("a", 1.0), ("b", 2.0))])
    assert "**1.0 ± 0.0**" in section(text, TABLES["table5"].title)
    assert "**2.0" not in text


def extras(folder):
    curve = [{"step": step, "lm_loss": 2 - step / 100, "structure_loss": None} for step in (0, 50)]
    (folder / "curves.json").write_text(json.dumps({"mse-0": curve, "alpha-10-0": curve}))
    (folder / "labels.json").write_text(json.dumps({"gak": {"bins": [0.0, 0.5, 1.0], "counts": [3, 1]}}))


def test_pictures_are_drawn_and_say_what_they_show(tmp_path):
    sizes = [entry("pool", "mse", str(size), 1000 / size, 1000 / size) for size in (100, 20)]
    write(tmp_path / "lab", [*some(), *sizes])
    extras(tmp_path / "lab")
    text = make_document(tmp_path / "lab", tmp_path / "lab" / "report.md", further=None).read_text()
    found = dict(re.findall(r"!\[(.+?)\]\((\w+)\.svg\)", text))
    assert sorted(found.values()) == ["ablation", "curves", "labels", "pool", "positions"]
    for name in found.values():
        assert ElementTree.parse(tmp_path / "lab" / f"{name}.svg").getroot().tag == SVG
    alts = {name: alt for alt, name in found.items()}
    assert "mse 60.5, 60.5, 60.5, 60.5, 60.5, 60.5" in alts["positions"]
    assert alts["labels"].endswith("mean label: gak 0.38.")
    assert alts["curves"].endswith("last LM loss: mse 1.50, alpha-10 1.50.")
    assert "mse 50.0 of 20, 10.0 of 100" in alts["pool"]
    assert "POPE: mse 73.0, lm-only 72.0" in alts["ablation"]


def test_the_same_results_give_the_same_files(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "lab", some())
        extras(tmp_path / name / "lab")
        make_document(tmp_path / name / "lab", tmp_path / name / "lab" / "report.md", further=None)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_it_says_how_it_was_made(tmp_path, text):
    assert "Budget `full`; 5 rows with 1 to 2 seeds; 15 numbers. Made with: machine 2 cores; torch 2.9." in text
    assert "\n```bash\npython -m sugar_lab --budget full\n```\n" in text
    assert "\npython -m sugar_lab --budget full --only mse/table1\n" in text
    assert "None of these numbers means anything" not in text
    assert "None of these numbers means anything" in document(
        tmp_path, [entry("table1", "a", "GQA", 1, budget="quick")]
    )


def test_cards_of_the_twins_are_printed(tmp_path):
    twin = Twin("vqav2", "VQAv2 twin", "generate", lambda budget: None, "accuracy", chance={"all": 25}, card="Words.")
    text = document(tmp_path, [entry("table1", "a", "GQA", 1.0)], twins={"vqav2": twin})
    assert "### VQAv2 twin\n\n`vqav2`. Words. Figure: accuracy. Chance: all 25.0." in text


def test_notes_stand_behind_the_verdicts_if_there_are_some(tmp_path):
    assert "What follows" not in document(tmp_path, [entry("table1", "a", "GQA", 1.0)])
    (tmp_path / "lab" / "notes.md").write_text("All rows are alike.\n")
    text = make_document(tmp_path / "lab", tmp_path / "lab" / "report.md", further=None).read_text()
    places = [text.index(part) for part in ("The paper's claims", "## What follows\n\nAll rows", "The defaults")]
    assert places == sorted(places)


def test_the_gallery_is_linked_if_it_is_there(tmp_path):
    write(tmp_path / "lab", [entry("table1", "a", "GQA", 1.0)])
    (tmp_path / "lab" / "gallery.html").write_text("")
    assert (
        "[The page](gallery.html)"
        in make_document(tmp_path / "lab", tmp_path / "lab" / "report.md", further=None).read_text()
    )


def test_it_runs_from_the_command_line(tmp_path, capsys):
    main([str(write(tmp_path / "lab", [entry("table1", "a", "GQA", 1.0)])), str(tmp_path / "x.md")])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'x.md'}\n"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("table1", "a", "GQA", 1.0) | {"mean": 2.0}], r"entry 0 \(table1 / a / GQA\): mean 2.0 and spread"),
        ([entry("table1", "a", "GQA", 1.0, 3.0) | {"spread": 0.0}], "are not those of the values"),
        ([entry("table1", "a", "GQA", float("nan"))], "are not those of the values"),
        ([entry("table1", "a", "GQA", 1.0, 2.0, seeds=[0, 0])], "each value needs a seed of its own"),
        ([entry("table1", "a", "GQA", 1.0, seeds=[0, 1])], "2 seeds for 1 values"),
        ([{"table": "table1"}], r"no result of the lab \(KeyError\('row'\)\)"),
        ({"table": "table1"}, "a list of results is expected"),
        ([entry("table1", "a", "GQA", 1.0), entry("table1", "a", "GQA", 2.0)], "disagree about table1/GQA of 'a'"),
        ([entry("table1", "a", "POPE", 1.0), entry("table4b", "a", "POPE", 2.0)], "disagree about table1/POPE"),
        ([entry("table1", "a", "GQA", 1.0), entry("table1", "b", "GQA", 1.0, budget="quick")], "mixes the budgets"),
    ],
)
def test_results_that_are_at_odds_are_refused(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        read_results(write(tmp_path, entries))


def test_no_results_is_an_error_that_names_the_mend(tmp_path):
    extras(tmp_path)
    with pytest.raises(FileNotFoundError, match="`python -m sugar_lab` writes them"):
        read_results(tmp_path)


def test_a_histogram_that_does_not_fit_is_refused(tmp_path):
    write(tmp_path, some())
    (tmp_path / "labels.json").write_text(json.dumps({"gak": {"bins": [0, 1], "counts": [1, 2]}}))
    with pytest.raises(ValueError, match="'gak': 2 edges do not fit 2 counts"):
        make_document(tmp_path, tmp_path / "lab" / "report.md", further=None)


def test_a_figure_that_two_tables_share_stands_in_both(tmp_path):
    text = document(tmp_path, [entry("table4b", "mse", "POPE", 44.0), entry("table1", "mse", "POPE", 44.0)])
    assert "44.0" in section(text, "Table 4b: ablation")
    assert "44.0" in section(text, "Table 1: eleven benchmarks")


def test_rows_are_ordered_and_missing_ones_found():
    rows = ["odd", "alpha-10", "mse", "alpha-3"]
    assert in_order(["mse", "alpha-*"], rows) == ["mse", "alpha-3", "alpha-10", "odd"]
    assert missing(["mse", "b|c", "delta-*"], rows) == ["b", "delta-*"]


def shipped(entries):
    """Entries of which the row is that of the card."""
    return [{**each, "row": ROW if each["row"] == "mse" else each["row"]} for each in entries]


def test_the_card_has_the_figures_of_sugar(tmp_path, llava):
    folder = write(tmp_path / "lab", shipped(some()))
    card = write_card(folder, tmp_path / "cards" / "mini.md", llava[0]).read_text(encoding="utf-8")
    assert "# sugar-mini" in card
    assert "| Table 1, VQAv2 | 66.0 | 67.0 ± 1.4 | 61.0 ± 1.4 | 10.0 |" in card
    assert "budget `full`" in card
    assert "this model is that of seed 0, of 2 seeds" in card
    assert "72000 drawn rows" in card
    assert "`alpha=0.45`" in card
    assert "It cannot be told from guessing in" not in card
    assert "license: apache-2.0" in card


def test_the_card_names_what_is_at_chance(tmp_path):
    found = figures(
        read_results(write(tmp_path, shipped([*some(), entry("table1", "mse", "GQA", 49.0, 53.0, chance=50.0)])))
    )
    assert found.endswith("It cannot be told from guessing in: Table 1, GQA.")


def test_what_ships_is_the_trained_model_in_half_the_size(tmp_path, llava):
    for part in llava:
        part.save_pretrained(tmp_path / "trained")
    folder = ship(tmp_path / "trained", tmp_path / "mini")
    assert str(tmp_path) not in (folder / "config.json").read_text()
    weights, whole = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "trained"))
    assert weights.keys() == whole.keys()
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert all(torch.equal(weights[name], whole[name].half()) for name in whole)
    model, processor = open_model(str(folder))
    assert model.dtype == torch.float32
    assert processor.tokenizer.get_vocab() == llava[1].tokenizer.get_vocab()


def test_a_card_without_figures_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"'{ROW}' has no figure"):
        figures(read_results(write(tmp_path, [entry("table1", "a", "GQA", 1.0)])))


def test_the_gallery_has_the_six_kinds_and_says_what_is_wrong(tmp_path, llava):
    pages = [make_gallery(*llava, tmp_path / name, examples=1, pool=3).read_text() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    titles = re.findall(r"<h2>(.+?)</h2>", pages[0])
    assert titles == [
        "How these were chosen",
        "Sensitivity with detailed semantics",
        "World knowledge",
        "Fine-grained image discrimination",
        "Multimodal concept composition",
        "Retrieval and dialog",
        "Retrieval at different places",
    ]
    assert pages[0].count('<div class="retrieved">') == 2 + 1 + 1 + 2 + 1 + 7
    assert pages[0].count('<div class="generated">') == 1 + 1 + 2
    assert len(re.findall("· (?:right|wrong)", pages[0])) == 14


def test_the_projects_document_and_card_are_those_of_its_results(tmp_path):
    root = Path(__file__).parents[2]
    shutil.copytree(root / "docs" / "lab", tmp_path / "lab")
    assert (
        make_document(tmp_path / "lab", tmp_path / "lab" / "report.md").read_text()
        == (root / "docs" / "lab" / "report.md").read_text()
    )
    card = write_card(root / "docs" / "lab", tmp_path / "card.md")
    assert card.read_text() == (root / "model_cards" / "mini-sugar.md").read_text()
