"""Many questions about one picture."""

import random
import re
from collections import Counter

from sugar_lab.recipe.interviews import TURNS, draw_choices, draw_interview, draw_told
from sugar_lab.recipe.vlm_recipe import Picture, text_of


def turns(pieces):
    """Questions and answers of a chat about one picture."""
    texts = [text_of(piece) for piece in pieces if not isinstance(piece, Picture)]
    asked = re.findall(r"(?:USER: )?\n?(.*?) ASSISTANT: (.*?)</s>", "".join(texts[1:]), flags=re.DOTALL)
    return [(question.removeprefix("USER: ").strip(), answer) for question, answer in asked]


def drawn(draw, size=900):
    return [turns(draw(random.Random(i))) for i in range(size)]


def test_an_interview_is_the_same_each_time():
    first, second = (draw_interview(random.Random(3)) for _ in range(2))
    assert turns(first) == turns(second)
    assert (first[1].pixels == second[1].pixels).all()


def test_an_interview_has_different_questions_about_one_picture():
    for asked in drawn(draw_interview):
        assert len(asked) == len(set(asked)) == TURNS


def test_yes_and_no_and_letters_are_balanced():
    answers = Counter(answer for asked in drawn(draw_interview) for _, answer in asked)
    assert abs(answers["yes"] - answers["no"]) < 0.1 * (answers["yes"] + answers["no"])
    letters = [answers[letter] for letter in "ABC"]
    assert min(letters) > 0.75 * max(letters)


def test_what_the_letter_stands_for_is_among_the_options():
    assert all(answer in "ABCD" for asked in drawn(draw_choices, 50) for _, answer in asked)
    for asked in (*drawn(draw_interview), *drawn(draw_choices)):
        for question, answer in asked:
            if "\nA. " in question:
                options = dict(re.findall(r"^([A-D])\. (.*)$", question, flags=re.MULTILINE))
                assert answer in options
                assert len(set(options.values())) == len(options)


def test_who_owns_what_is_told():
    for asked in drawn(draw_told):
        told = re.findall(r"(\w+) owns the (\w+)\.|the (\w+) belongs to (\w+)\.", asked[0][0])
        owners = {a or d for a, _, _, d in told}
        things = {b or c: a or d for a, b, c, d in told}
        assert len(owners) == len(things) == len(told)
        for question, answer in asked:
            assert answer in owners
            name = question.rpartition("the ")[2].rstrip("?")
            if name in things:
                assert things[name] == answer
