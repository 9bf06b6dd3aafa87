"""The accuracy of VQA against ten annotators, in its official and in its EvalAI form."""

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_LOOSE_PERIOD = re.compile(r"\.(?!\d)")
#: The official call passes re.UNICODE, which is 32, where `sub` takes the count.
_PERIODS = 32
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = {"a", "an", "the"}

#: Words whose form without its apostrophe gets it back.
_ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
#: Words whose two forms with one apostrophe missing get it back.
_TWO_APOSTROPHES = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""


def _contractions() -> dict[str, str]:
    """The official table, without the entries in capitals (I'm, I've, I'd've): they meet lower case only."""
    table = {form.replace("'", ""): form for form in _ONE_APOSTROPHE.split()}
    for form in _TWO_APOSTROPHES.split():
        first, second, third = form.split("'")
        table |= {f"{first}{second}'{third}": form, f"{first}'{second}{third}": form}
    table |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    return table | {"somebody'd": "somebodyd", "let's": "let's", "she's": "she's"}


CONTRACTIONS = _contractions()


def process_punctuation(text: str) -> str:
    """Delete punctuation, or put a space in its place, as the official VQA script does.

    A mark is deleted if the text has it beside a space anywhere, or if a comma between two digits occurs in the text;
    otherwise a space takes its place. Full stops before anything but a digit are deleted, the first 32 of them.
    Apostrophes and colons stay. lmms-eval takes several commas between digits (`1,,2`) for one in a number; the
    official script does not.

    >>> process_punctuation("red,blue"), process_punctuation("red, blue"), process_punctuation("1,000-2.")
    ('red blue', 'red blue', '10002')
    """
    table: dict[str, str | int | None] = dict.fromkeys(_PUNCTUATION, "")
    if not _COMMA_IN_NUMBER.search(text):
        table |= {mark: " " for mark in _PUNCTUATION if mark + " " not in text and " " + mark not in text}
    return _LOOSE_PERIOD.sub("", text.translate(str.maketrans(table)), count=_PERIODS)


def process_digits_articles(text: str) -> str:
    """Lower case, numbers up to ten as digits, no articles, apostrophes where they belong, single spaces.

    >>> process_digits_articles("The two dogs dont")
    "2 dogs don't"
    """
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy as the official VQAv2 script computes it.

    The mean over the annotators i of min(1, #{j other than i: answer_j = prediction} / 3): for ten annotators 0, .3,
    .6, .9, 1 for 0, 1, 2, 3, 4 and more matches. Both sides are normalised only if the answers are not all the same;
    if they are, the comparison is raw and minds the case. lmms-eval always normalises.

    Args:
        prediction: the model's answer.
        answers: the annotators' answers, ten in VQAv2.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: if there are no answers, or a single string is given for them.

    >>> vqa_accuracy("Two", ["2"] * 3 + ["three"] * 7), vqa_accuracy("Two", ["two"] * 10)
    (0.9, 0.0)
    """
    prediction, answers = _one_line(prediction), [_one_line(answer) for answer in _checked(answers)]
    if len(set(answers)) > 1:
        prediction, *answers = (process_digits_articles(process_punctuation(t)) for t in (prediction, *answers))
    return _leave_one_out(prediction, answers)


def evalai_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy with the EvalAI processor, as LLaVA and lmms-eval use it for TextVQA and VizWiz.

    Both sides are always normalised; commas and question marks are deleted first and `'s` is set apart, so that
    `red,blue` becomes `redblue` (by the official VQA script `red blue`) and `dog's` becomes `dog 's`. The score is
    that of `vqa_accuracy`.

    Args:
        prediction: the model's answer.
        answers: the annotators' answers, ten in TextVQA and VizWiz.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: if there are no answers, or a single string is given for them.

    >>> evalai_accuracy("The Stop sign?", ["stop sign"] * 2 + ["sign"] * 8)
    0.6
    """
    return _leave_one_out(_evalai(prediction), [_evalai(answer) for answer in _checked(answers)])


def _evalai(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return process_digits_articles(process_punctuation(_one_line(text.strip())))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _checked(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str) or not len(answers):
        raise ValueError(f"answers: need a list with at least one string, got {answers!r}")
    return answers


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    total, matches = len(answers), sum(answer == prediction for answer in answers)
    # An annotator who gave this answer sees one match less than the others do.
    return (matches * min(3, max(0, matches - 1)) + (total - matches) * min(3, matches)) / (3 * total)
