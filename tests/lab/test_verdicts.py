import pytest
from lab_tools import entry, write

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES
from sugar_lab.measurements import read_results
from sugar_lab.table_layout import GENERATION, RETRIEVAL
from sugar_lab.verdicts import (
    CLAIMS,
    CONFIRMED,
    NOISE,
    REFUTED,
    UNKNOWN,
    all_verdicts,
    costs_nothing,
    data_help,
    flattens_positions,
    hallucinates_less,
    kernels_win,
    own_retrieval_helps,
    parts_matter,
    wins_retrieval,
)


@pytest.fixture
def results(tmp_path):
    """Makes results of entries."""
    return lambda *entries: read_results(write(tmp_path, list(entries)))


def row(places, name, *values):
    return [entry(*place.split("/")[:1], name, place.split("/")[1], *values) for place in places]


def pope(sugar, lm_only):
    return entry("table1", "sugar", "POPE", *sugar), entry("table1", "lm-only", "POPE", *lm_only)


@pytest.mark.parametrize(
    ("sugar", "lm_only", "outcome"),
    [
        # spreads of sqrt(2) over two seeds: twice the standard error is 2 sqrt(2/2 + 2/2) = 2.83
        ((71.0, 73.0), (68.0, 70.0), CONFIRMED),
        ((71.0, 73.0), (68.5, 70.5), NOISE),
        ((68.0, 70.0), (71.0, 73.0), REFUTED),
        # seeds that agree are taken to have the median variance of both rows, (0 + 2) / 2: 2 sqrt(1/2 + 2/2) = 2.45
        ((72.44, 72.44), (69.0, 71.0), NOISE),
        ((72.46, 72.46), (69.0, 71.0), CONFIRMED),
        ((70.0, 70.0), (70.0, 70.0), NOISE),
        # one seed on either side tells nothing
        ((90.0,), (10.0, 10.0), NOISE),
        ((90.0, 90.0), (10.0,), NOISE),
    ],
)
def test_a_difference_counts_if_it_exceeds_twice_its_standard_error(results, sugar, lm_only, outcome):
    assert hallucinates_less(results(*pope(sugar, lm_only))).outcome == outcome


def test_a_single_seed_is_said_to_be_the_reason(results):
    verdict = hallucinates_less(results(*pope((90.0,), (10.0, 12.0))))
    assert "single seed" in verdict.why
    assert "`sugar` 90.00 (1 seed) against `lm-only` 11.00 ± 1.41 (2 seeds)" in verdict.figures


def test_the_figures_of_a_verdict_are_told(results):
    verdict = hallucinates_less(results(*pope((71.0, 73.0), (68.0, 70.0))))
    assert verdict.figures == (
        "POPE: `sugar` 72.00 ± 1.41 (2 seeds) against `lm-only` 69.00 ± 1.41 (2 seeds), gap +3.00, twice its "
        "standard error 2.83."
    )


def test_without_figures_nothing_is_measured(results):
    found = all_verdicts(results(entry("order", "sugar", "all", 1.0)))
    assert len(found) == len(CLAIMS) == 8
    assert {verdict.outcome for verdict in found} == {UNKNOWN}
    assert all(verdict.claim and verdict.why for verdict in found)


@pytest.mark.parametrize(
    ("sugar", "outcome"),
    [
        ((70.0, 70.0), CONFIRMED),
        ((69.5, 69.5), CONFIRMED),  # half a point less is within what is allowed
        ((69.49, 69.49), REFUTED),
        ((69.8, 70.4), NOISE),  # it may lie below: noise 0.6, and only 0.6 above what is allowed
        ((60.0,), NOISE),
    ],
)
def test_joint_training_may_cost_half_a_point(results, sugar, outcome):
    places = ("table1/VQAv2", "table1/GQA")
    verdict = costs_nothing(results(*row(places, "sugar", *sugar), *row(places, "lm-only", 70.0, 70.0)))
    assert verdict.outcome == outcome
    assert "mean of 2 of 9 columns" in verdict.figures
    assert "Not run: VizWiz, SQA-I, VQA-T, POPE, MMB, LLaVA-W, MM-Vet." in verdict.why


def test_scores_on_other_scales_are_left_out_of_the_mean(results):
    places = ("table1/MME-P", "table1/GQA")
    found = costs_nothing(results(*row(places, "sugar", 50.0, 50.0), *row(places, "lm-only", 50.0, 50.0)))
    assert "mean of 1 of 9 columns" in found.figures
    only = ("table1/MME-P",)
    assert costs_nothing(results(*row(only, "sugar", 900.0), *row(only, "lm-only", 1.0))).outcome == UNKNOWN


def test_means_over_columns_are_taken_seed_by_seed(results):
    # the columns of a seed move against each other, so that the seeds' means do not move at all
    places = [[entry("table1", "sugar", "GQA", 60.0, 64.0), entry("table1", "sugar", "VQAv2", 64.0, 60.0)]]
    places += [[entry("table1", "lm-only", "GQA", 60.0, 60.0), entry("table1", "lm-only", "VQAv2", 60.0, 60.0)]]
    verdict = costs_nothing(results(*places[0], *places[1]))
    assert "`sugar` 62.00 ± 0.00 (2 seeds)" in verdict.figures
    assert verdict.outcome == CONFIRMED


def curve(name, *seeds, chance=50.0):
    """A row of table 5: each seed is (ends, middle)."""
    return [
        entry("table5", name, place, *(ends if place in "16" else middle for ends, middle in seeds), chance=chance)
        for place in TABLES["table5"].columns
    ]


@pytest.mark.parametrize(
    ("sugar", "lm_only", "outcome"),
    [
        ([(80, 78), (80, 78)], [(80, 70), (80, 70)], CONFIRMED),  # depth 2 against 10
        ([(80, 68), (80, 68)], [(80, 70), (80, 70)], REFUTED),  # 12 against 10
        ([(80, 70), (80, 70)], [(80, 70), (80, 70)], NOISE),
        ([(68, 80), (68, 80)], [(80, 70), (80, 70)], REFUTED),  # an arch of 12 is no flatter
        ([(80, 78), (80, 78)], [(70, 70), (70, 70)], NOISE),  # there is nothing to flatten
        ([(50, 50), (50, 50)], [(80, 70), (80, 70)], NOISE),  # flat, but at chance
        ([(80, 78)], [(80, 70), (80, 70)], NOISE),
    ],
)
def test_a_flatter_curve_has_less_depth_and_is_above_chance(results, sugar, lm_only, outcome):
    verdict = flattens_positions(results(*curve("sugar", *sugar), *curve("lm-only", *lm_only)))
    assert verdict.outcome == outcome


def test_a_curve_without_one_of_its_places_is_not_measured(results):
    found = results(*curve("sugar", (80, 70), (80, 70))[1:], *curve("lm-only", (80, 70), (80, 70)))
    assert flattens_positions(found).outcome == UNKNOWN


def retrieval(name, vist, group):
    return [entry("table3b", name, "5c+4i+dagger R@1", *vist), entry("table3c", name, "group", *group)]


def test_a_fixed_checkpoint_needs_no_seeds(results):
    ours = retrieval("sugar", (21.0, 21.0), (30.0, 30.0))
    rivals = [*retrieval("infonce", (20.0, 20.0), (20.0, 20.0)), *retrieval("mini-clip", (15.0,), (10.0,))]
    found = wins_retrieval(results(*ours, *rivals))
    assert found.outcome == CONFIRMED
    assert found.why == "Of 4 parts 4 confirmed."
    worse = wins_retrieval(results(*retrieval("sugar", (19.0, 19.0), (30.0, 30.0)), *rivals))
    assert worse.outcome == REFUTED
    assert [part.outcome for part in worse.parts[:4]] == [REFUTED, CONFIRMED, CONFIRMED, CONFIRMED]


def test_aims_are_factors_of_the_rival_and_do_not_count(results):
    rivals = [*retrieval("infonce", (20.0, 20.0), (20.0, 20.0)), *retrieval("mini-clip", (15.0,), (10.0,))]
    missed = wins_retrieval(results(*retrieval("sugar", (29.0, 29.0), (30.0, 30.0)), *rivals))
    assert missed.outcome == CONFIRMED
    assert [part.outcome for part in missed.parts[4:]] == [REFUTED, REFUTED]  # neither 1.5 times 20 nor 2 times 15
    assert all(part.claim.startswith("Aim, not counted") for part in missed.parts[4:])
    exactly = wins_retrieval(results(*retrieval("sugar", (30.0, 30.0), (30.0, 30.0)), *rivals))
    assert [part.outcome for part in exactly.parts[4:]] == [CONFIRMED, CONFIRMED]  # "at least"


def test_a_factor_multiplies_the_rivals_spread_too(results):
    # variances over two seeds are 8 for the rival and 4 for ours, the median of both: 2 sqrt(4/2 + 1.5² 8/2) = 6.63
    rivals = [*retrieval("infonce", (18.0, 22.0), (20.0, 20.0)), *retrieval("mini-clip", (15.0,), (10.0,))]
    found = wins_retrieval(results(*retrieval("sugar", (35.0, 35.0), (30.0, 30.0)), *rivals))
    assert found.parts[4].outcome == NOISE
    assert "gap +5.00, twice its standard error 6.63" in found.parts[4].figures


def test_a_missing_rival_leaves_the_claim_open_unless_another_part_refutes_it(results):
    infonce = retrieval("infonce", (20.0, 20.0), (20.0, 20.0))
    found = wins_retrieval(results(*retrieval("sugar", (31.0, 31.0), (30.0, 30.0)), *infonce))
    assert found.outcome == UNKNOWN
    assert found.why == "Of 4 parts 2 confirmed, 2 not measured."
    assert found.parts[2].why == "`mini-clip` has no R@1."
    found = wins_retrieval(results(*retrieval("sugar", (15.0, 15.0), (30.0, 30.0)), *infonce))
    assert found.outcome == REFUTED


def test_ablations_are_read_from_the_tables_that_theirs_repeats(results):
    ours = [
        entry("table3a", "sugar", "T2I R@5", 50.0, 50.0),
        entry("table3b", "sugar", "5c+4i+dagger R@5", 50.0, 50.0),
        entry("table3c", "sugar", "image", 50.0, 50.0),
    ]
    rows = [found for name in ("mean", "clip-only", "last-token") for found in row(RETRIEVAL, name, 40.0, 40.0)]
    assert parts_matter(results(*ours, *rows)).outcome == CONFIRMED
    noisy = [*rows[:6], *row(RETRIEVAL, "last-token", 40.0, 60.0)]
    assert parts_matter(results(*ours, *noisy)).outcome == NOISE


def knowledge(own, alone, separate, lm_only):
    found = []
    for table, columns in (("table4a", ("VizWiz", "SQA-I")), ("table7", ("FVQA", "WebQA"))):
        for column in columns:
            found.append(entry(table, "sugar + own", column, own, own))
            found.append(entry(table, "lm-only + mini-clip image", column, separate, separate))
            found.append(entry(table, "lm-only + mini-clip text", column, separate - 5, separate - 5))
            if column != "WebQA":
                found.append(entry(table, "sugar, no retrieval", column, alone, alone))
                found.append(entry(table, "lm-only, no retrieval", column, lm_only, lm_only))
    return found


def test_what_retrieval_adds_is_compared_and_not_how_good_a_model_is(results):
    assert own_retrieval_helps(results(*knowledge(60, 40, 50, 40))).outcome == CONFIRMED
    # a better model with a smaller gain
    assert own_retrieval_helps(results(*knowledge(60, 55, 50, 40))).outcome == REFUTED
    # less of a loss is no help
    assert own_retrieval_helps(results(*knowledge(52, 55, 41, 50))).outcome == REFUTED
    assert own_retrieval_helps(results(*knowledge(60, 50, 50, 40))).outcome == NOISE


def test_of_several_views_the_best_one_counts(results):
    verdict = own_retrieval_helps(results(*knowledge(60, 40, 50, 40)))
    assert "`lm-only + mini-clip image`" in verdict.figures
    assert "mini-clip text" not in verdict.figures


def test_each_kind_of_data_has_to_help_the_other_side(results):
    ours = row((*GENERATION, *RETRIEVAL), "sugar", 50.0, 50.0)
    helped = [*row(GENERATION, "no-data-d", 45.0, 45.0), *row(RETRIEVAL, "no-data-g", 45.0, 45.0)]
    assert data_help(results(*ours, *helped)).outcome == CONFIRMED
    hurt = [*row(GENERATION, "no-data-d", 55.0, 55.0), *row(RETRIEVAL, "no-data-g", 45.0, 45.0)]
    assert data_help(results(*ours, *hurt)).outcome == REFUTED


@pytest.mark.parametrize(
    ("sugar", "aligned", "outcome"),
    [
        (60.0, 40.0, CONFIRMED),
        (40.0, 60.0, CONFIRMED),  # one of the two is enough
        (40.0, 40.0, REFUTED),
        (40.0, 50.0, NOISE),
        (40.0, None, UNKNOWN),
        (60.0, None, CONFIRMED),
    ],
)
def test_one_of_two_kernels_has_to_beat_both_others(results, sugar, aligned, outcome):
    rows = row(RETRIEVAL, "sugar", sugar, sugar)
    rows += row(RETRIEVAL, "aligned", aligned, aligned) if aligned else []
    rows += [*row(RETRIEVAL, "gak", 30.0, 30.0), *row(RETRIEVAL, "mean", 50.0, 50.0)]
    assert kernels_win(results(*rows)).outcome == outcome
