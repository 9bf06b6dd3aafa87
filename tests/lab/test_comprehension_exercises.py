"""Questions about one picture: right answers, worked out again from question and scene; nothing to guess by."""

import random
import re
from collections import Counter

import pytest

from sugar_hf.data import validate_row
from sugar_hf.picturebook import SPLITS
from sugar_hf.picturebook.names import GROUP_NOUN, GROUP_OF, SYNONYMS
from sugar_hf.picturebook.scenes import PLACES, Item, Scene, caption, split_of
from sugar_lab.exercises import draw_many
from sugar_lab.exercises.closed_questions import (
    COGNITION,
    LETTERS,
    PERCEPTION,
    draw_object,
    draw_yes_no_pair,
    rotations,
)
from sugar_lab.exercises.comprehension import EXERCISES, SAY_SO, UNANSWERABLE, answers_of
from sugar_lab.exercises.crowds import COUNTS, POPULAR, things
from sugar_lab.exercises.described_facts import fact_f1, facts_in, facts_of
from sugar_lab.exercises.relations import WORDS, holds

NAME = {other: name for name, other in SYNONYMS.items()}
PLACE = {phrase: place for place, phrases in enumerate(PLACES) for phrase in phrases}
RELATION = {words: relation for relation, words in WORDS.items()}
NUMBER = {word: number for number, word in enumerate(COUNTS)} | {"twice": 2, "three times": 3, "four times": 4}
GROUP = {noun: group for group, noun in GROUP_NOUN.items()}
ANY = "|".join(sorted(RELATION, key=len, reverse=True))


def drawn(kind, split="test", size=400):
    return draw_many(EXERCISES[kind], kind, split, size)


def one(found):
    """The only one."""
    [item] = found
    return item


def named(scene, name):
    return one(item for item in scene.items if item.concept == NAME.get(name, name))


def the_thing(scene, words):
    """The thing that words mean: a name, or `thing to the left of the dog`."""
    if found := re.fullmatch(rf"thing ({ANY}) the (.+)", words):
        other = the_thing(scene, found[2])
        return one(item for item in things(scene) if holds(RELATION[found[1]], item, other))
    return named(scene, words)


def there(scene, name):
    return sum(item.concept == name for item in scene.items)


def said(truth):
    return "yes" if truth else "no"


def side(scene, words):
    signs = [item for item in scene.items if item.text]
    if words == "sign":
        return one(signs).text
    key, last = {
        "sign on the left": (lambda sign: sign.place % 3, False),
        "sign on the right": (lambda sign: sign.place % 3, True),
        "upper sign": (lambda sign: sign.place // 3, False),
        "lower sign": (lambda sign: sign.place // 3, True),
    }[words]
    assert len({key(sign) for sign in signs}) == 2
    return sorted(signs, key=key)[-1 if last else 0].text


def more(scene, words):
    sizes = Counter(item.size for item in things(scene))
    return sizes[words] > sizes["large" if words == "small" else "small"]


# One rule for each form of question, in the order in which they are tried.
RULES = [
    (r"what is (" + "|".join(PLACE) + r")\?", lambda s, a: s.at(PLACE[a]).concept),
    (r"where is the (.+)\?", lambda s, a: PLACES[the_thing(s, a).place][0]),
    (r"how many things are there\?", lambda s: COUNTS[len(things(s))]),
    (r"how often is there an? (.+)\?", lambda s, a: COUNTS[there(s, a)]),
    (r"which colour is the background\?|what is the background colour\?", lambda s: s.background),
    (r"is the (.+) small or large\?", lambda s, a: the_thing(s, a).size),
    (r"is there an? (.+) in the picture\?", lambda s, a: said(there(s, a))),
    (r"is there an? (.+) and an? (.+)\?", lambda s, a, b: said(there(s, a) and there(s, b))),
    (r"is there an? (.+) or an? (.+)\?", lambda s, a, b: said(there(s, a) or there(s, b))),
    (r"is there no (.+)\?", lambda s, a: said(not there(s, a))),
    (r"is there an? (.+)\?", lambda s, a: said(there(s, a))),
    (
        rf"what is ({ANY}) the (.+)\?",
        lambda s, r, a: one(t for t in things(s) if holds(RELATION[r], t, the_thing(s, a))).concept,
    ),
    (r"which thing is not (.+)\?", lambda s, a: one(t for t in things(s) if t.size != a).concept),
    (
        rf"is the (.+) not ({ANY}) the (.+)\?",
        lambda s, a, r, b: said(not holds(RELATION[r], named(s, a), named(s, b))),
    ),
    (rf"is the (.+) ({ANY}) the (.+)\?", lambda s, a, r, b: said(holds(RELATION[r], named(s, a), named(s, b)))),
    (r"what does the (.+) say\?", side),
    (r"what is written on the sign\?", lambda s: side(s, "sign")),
    (r"does the sign say (.+)\?", lambda s, a: said(side(s, "sign") == a)),
    (r"is the background (.+)\?", lambda s, a: said(s.background == a)),
    (
        r"is the thing (" + "|".join(PLACE) + ") (" + "|".join(GROUP) + r")\?",
        lambda s, a, b: said(GROUP_OF[s.at(PLACE[a]).concept] == GROUP[b]),
    ),
    (r"is the (.+) there (.+)\?", lambda s, a, b: said(there(s, a) == NUMBER[b])),
    (r"is the (.+?) (" + "|".join(PLACE) + r")\?", lambda s, a, b: said(named(s, a).place == PLACE[b])),
    (r"are there (\w+) things\?", lambda s, a: said(len(things(s)) == NUMBER[a])),
    (r"with (\w+) more, are there (\w+) things\?", lambda s, a, b: said(len(things(s)) + NUMBER[a] == NUMBER[b])),
    (r"are there more (\w+) things than \w+ ones\?", lambda s, a: said(more(s, a))),
]


def solve(scene, question):
    for pattern, rule in RULES:
        if found := re.fullmatch(pattern, question):
            return rule(scene, *found.groups())
    raise AssertionError(f"no rule for {question!r}")


def solve_options(scene, question, options):
    """The options that are right."""
    names = [item.concept for item in things(scene)]
    if question == "which of these is in the picture?":
        return [name for name in options if name in names]
    if question == "which of these is not in the picture?":
        return [name for name in options if name not in names]
    if found := re.fullmatch(r"what in the picture is (.+)\?", question):
        return [name for name in options if name in names and GROUP_OF[name] == GROUP[found[1]]]
    if question == "what does the picture show?":
        return [text for text in options if {f for f in facts_in(text) if "size" in f} <= facts_of(scene)]
    return [option for option in options if option == solve(scene, question)]


@pytest.mark.parametrize("kind", EXERCISES)
def test_the_same_exercises_are_drawn_twice_and_the_first_do_not_depend_on_how_many(kind):
    assert drawn(kind, size=20) == drawn(kind, size=40)[:20]
    assert drawn(kind, size=20) != drawn(kind, "validation", size=20)


@pytest.mark.parametrize("kind", EXERCISES)
@pytest.mark.parametrize("split", SPLITS)
def test_exercises_keep_to_the_combinations_of_their_split(kind, split):
    for exercise in drawn(kind, split, 60):
        [scene] = [part for part in exercise.parts if isinstance(part, Scene)]
        names = sorted({item.concept for item in things(scene)})
        pairs = [(a, b) for a in names for b in names if a < b] + [(name, scene.background) for name in names]
        found = {split_of(*pair) for pair in pairs}
        assert found == {"train"} if split == "train" else split in found and found <= {"train", split}


@pytest.mark.parametrize("kind", EXERCISES)
def test_exercises_are_rows_of_one_picture_and_one_short_question(kind):
    for exercise in drawn(kind, "train", 60):
        assert exercise.kind == kind
        assert len(exercise.parts[1].split()) <= 45
    row = exercise.row()
    validate_row({"id": "1", "source": "picturebook", **row})
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "text"]


@pytest.mark.parametrize("kind", ["open", "compositional", "object", "yes_no_pair", "reading"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_follow_from_picture_and_question(kind, split):
    for exercise in drawn(kind, split):
        scene, question = exercise.parts
        assert solve(scene, question) == exercise.answer, (scene, question)


@pytest.mark.parametrize("kind", ["choice", "circular"])
def test_exactly_one_option_is_right(kind):
    for exercise in drawn(kind):
        scene, options = exercise.parts[0], exercise.info["options"]
        assert len(set(options)) == len(options)
        right = options[LETTERS.index(exercise.answer)]
        assert solve_options(scene, exercise.info["question"], options) == [right], exercise


def test_all_forms_of_questions_occur():
    asked = [e.parts[1] for kind in ("open", "compositional", "object", "yes_no_pair", "reading") for e in drawn(kind)]
    for pattern, _ in RULES:
        assert any(re.fullmatch(pattern, question) for question in asked), pattern


def test_half_of_the_questions_cannot_be_answered_whatever_their_form():
    found = Counter()
    for exercise in drawn("unanswerable", size=2000):
        scene, question = exercise.parts
        assert question.endswith(SAY_SO)
        question = question.removesuffix(SAY_SO)
        found[question.split()[0] + " " + question.split()[-1], exercise.answer == UNANSWERABLE] += 1
        try:
            known = solve(scene, question)
        except (AttributeError, ValueError):  # nothing there, or no such thing
            known = UNANSWERABLE
        assert known == exercise.answer
    by_form = {form: [found[form, True], found[form, False]] for form in ("what say?", "is large?")}
    assert all(0.4 < a / (a + b) < 0.6 for a, b in by_form.values())
    assert 0.46 < sum(count for (_, unknown), count in found.items() if unknown) / 2000 < 0.54


def test_answers_of_ten_people_have_the_other_names():
    found = [exercise.info["answers"] for exercise in drawn("open", size=1000)]
    assert {len(answers) for answers in found} == {10}
    assert any(set(answers) == {name, other} for answers in found for name, other in SYNONYMS.items())
    assert answers_of("television") == ["television"] * 7 + ["tv"] * 3
    assert ["in the middle"] * 6 + ["in the centre"] * 4 in found


@pytest.mark.parametrize("kind", ["compositional", "object", "yes_no_pair"])
def test_yes_and_no_are_as_frequent(kind):
    answers = [exercise.answer for exercise in drawn(kind, "train", 3000)]
    yes, no = answers.count("yes"), answers.count("no")
    assert 0.46 < yes / (yes + no) < 0.54


@pytest.mark.parametrize(("kind", "options"), [("choice", (3, 4, 5)), ("circular", (4,))])
def test_letters_are_as_frequent(kind, options):
    found = drawn(kind, "train", 3000)
    for size in options:
        letters = Counter(e.answer for e in found if len(e.info["options"]) == size)
        expected = sum(letters.values()) / size
        assert len(letters) == size
        assert all(0.8 * expected < count < 1.2 * expected for count in letters.values())


def test_popular_things_are_asked_for_in_one_category_only_whether_there_or_not():
    for category in ("random", "popular", "adversarial"):
        draw = draw_many(lambda rng, split, c=category: draw_object(rng, split, c), category, "test", 200)
        for exercise in draw:
            name = re.fullmatch(r"is there an? (.+) in the picture\?", exercise.parts[1])[1]
            assert (name in POPULAR) == (category == "popular")
            if category == "adversarial" and exercise.answer == "no":
                assert GROUP_OF[name] in {GROUP_OF[item.concept] for item in things(exercise.parts[0])}


@pytest.mark.parametrize("subtask", PERCEPTION + COGNITION)
def test_pairs_have_one_picture_and_first_a_yes_then_a_no(subtask):
    for seed in range(100):
        pair = draw_yes_no_pair(random.Random(seed), "test", subtask)
        assert pair[0].parts[0] == pair[1].parts[0]
        assert [solve(*exercise.parts) for exercise in pair] == [e.answer for e in pair] == ["yes", "no"]


def test_an_unknown_subtask_is_refused():
    with pytest.raises(ValueError, match="no subtask 'posters'; there are existence"):
        draw_yes_no_pair(random.Random(0), "test", "posters")


def test_numbers_tell_nothing_about_yes_and_no():
    found = Counter()
    for seed in range(3000):
        for exercise in draw_yes_no_pair(random.Random(seed), "train", "count"):
            found[re.sub(r"is the .+ there", "", exercise.parts[1]), exercise.answer] += 1
    for question in {question for question, _ in found}:
        yes, no = found[question, "yes"], found[question, "no"]
        assert 0.4 < yes / (yes + no) < 0.6, question


def test_rotations_have_the_right_option_at_each_letter_once():
    [base] = drawn("circular", size=1)
    turned = rotations(base)
    assert turned[0] == base
    assert sorted(exercise.answer for exercise in turned) == list("ABCD")
    right = {e.info["options"][LETTERS.index(e.answer)] for e in turned}
    assert len(right) == 1
    assert turned[1].parts[1].splitlines()[1] == f"A. {base.info['options'][1]}"


def test_parts_of_mixed_answers_are_counted_right():
    for exercise in drawn("mixed"):
        scene, question = exercise.parts
        answer = exercise.answer.split(", ")
        sizes = Counter(item.size for item in things(scene))
        assert [part[0] for part in exercise.info["parts"]] == answer
        if question.startswith("how many things are small"):
            assert [NUMBER.get(number, 0) for number in answer] == [sizes["small"], sizes["large"]]
        elif found := re.fullmatch(r"how many things are to the left of the (.+), and how many .+", question):
            counts = [sum(holds(way, t, named(scene, found[1])) for t in things(scene)) for way in ("left", "right")]
            assert [NUMBER.get(number, 0) for number in answer] == counts
        elif found := re.fullmatch(r"what is (.+), and is it small or large\?", question):
            item = scene.at(PLACE[found[1]])
            assert answer == [item.concept, item.size]
        else:
            sign = one(item for item in scene.items if item.text)
            last = {
                "background?": scene.background,
                "it?": PLACES[sign.place][0],
                "there?": COUNTS[len(things(scene))],
            }
            assert answer == [sign.text, last[question.split()[-1]]]


def test_captions_state_the_facts_of_their_scene():
    for exercise in drawn("detail", size=200):
        facts = facts_of(exercise.parts[0])
        assert facts_in(exercise.answer) == facts == set(exercise.info["facts"])
        assert facts_in(caption(exercise.parts[0], random.Random(1), shuffle=True).upper()) == facts


def test_facts_are_lost_by_silence_and_by_what_is_not_so():
    facts = facts_of(Scene((Item("cat", "small", 0), Item("automobile", "large", 4)), "red"))
    assert len(facts) == 7
    assert fact_f1(facts_in("a small cat at the top left and a large car in the centre."), facts) == pytest.approx(
        2 * 6 / (6 + 7)
    )
    assert facts_in("the background is blue, with a large cat at the top.") & facts == {"thing: cat"}
    assert fact_f1(facts_in("nothing"), facts) == 0.0
