"""The paper's claims as questions to outcomes: rows, places, and the smallest difference worth telling."""

from collections.abc import Sequence
from dataclasses import dataclass

from .evidence import ANSWERS, WINNER

Places = tuple[tuple[str, str], ...]

CLAIMS: Sequence[str] = (
    "Joint training costs no quality of generation.",
    "It lowers hallucination.",
    "It flattens the curve of positions.",
    "It beats LM + InfoNCE and CLIP on interleaved and on fine-grained retrieval.",
    "GAK, the triple kernel and average pooling each matter.",
    "Retrieval by the same model helps knowledge questions more than a separate retriever.",
    "Discriminative and generative data help each other.",
    "Calibrated or aligned labels beat those of gak and mean.",
)


@dataclass(frozen=True)
class Question:
    """A difference that a claim says is above a bar.

    Args:
        claim: the number of the claim, from 1.
        text: what is claimed.
        row: the row that the claim is about.
        rival: the row that it is compared with.
        places: `(task, figure)`, whose mean is taken.
        worth: the smallest difference worth telling. A claim of a difference is refuted if it is less than that.
        factor: what the rival's figure is multiplied by.
        allowed: how much may be lost; the bar is that far below the rival. `worth` plays no part then.
        less: whether less is better, as of a loss.
        study: whose outcomes tell.
        is_aim: a goal beside the claim, which does not count for it.
        without: the two rows without what is added, where gains are compared.
        unit: of the difference, where it is no percentage.
    """

    claim: int
    text: str
    row: str
    rival: str
    places: Places
    worth: float
    factor: float = 1.0
    allowed: float | None = None
    less: bool = False
    study: str = "lab"
    is_aim: bool = False
    without: tuple[str, str] | None = None
    unit: str = ""


ANSWER_PLACES: Places = tuple((task, "score") for task in ANSWERS)
_STORY: Places = (("vist 5c+4i dagger", "R@1"),)
_SEEN: Places = (("vist 5c+4i", "R@1"),)
_FINE: Places = (("winoground group", "hit"),)
RETRIEVAL: Places = (
    *(("coco t2i", "R@1"), ("coco i2t", "R@1")),
    *(("vist 5c dagger", "R@1"), ("vist 5c+4i dagger", "R@1")),
)

_MANUALS = ("gimp", "grass")
_REAL_TEXT: Places = tuple((f"{manual}/{kind}", "R@1") for manual in _MANUALS for kind in ("title", "rest"))
_REAL_MIXED: Places = tuple(
    (f"{manual}/{kind}", "R@1") for manual in _MANUALS for kind in ("next", "caption", "picture")
)
_HEADS, _JOINT, _ASKED = "real-test", "real-joint", "real-answers"
#: The setting of the study on real documents.
_REAL = "kl-0.3"

QUESTIONS: Sequence[Question] = (
    Question(1, "answers, mean of five benchmarks", WINNER, "lm-only", ANSWER_PLACES, 0.5, allowed=0.5),
    Question(
        *(1, "loss of held-out answers, nats for each token", WINNER, "lm-only", (("answer-loss", "loss"),), 0.02),
        allowed=0.02,
        less=True,
        unit=" nats",
    ),
    Question(
        2,
        "share of what descriptions state that is false",
        WINNER,
        "lm-only",
        (("llava-w false", "score"),),
        1.0,
        less=True,
    ),
    Question(4, "last picture of a story (5c+4i, dagger), R@1", WINNER, "infonce", _STORY, 2.0),
    Question(4, "the same with the pictures seen kept, R@1", WINNER, "infonce", _SEEN, 2.0),
    Question(4, "two captions of the same words, group", WINNER, "infonce", _FINE, 2.0),
    Question(4, "last picture of a story (5c+4i, dagger), R@1", WINNER, "mini-clip", _STORY, 2.0),
    Question(4, "two captions of the same words, group", WINNER, "mini-clip", _FINE, 2.0),
    Question(4, "1.5 times InfoNCE, last picture of a story, R@1", WINNER, "infonce", _STORY, 0.0, 1.5, is_aim=True),
    Question(4, "twice mini CLIP, last picture of a story, R@1", WINNER, "mini-clip", _STORY, 0.0, 2.0, is_aim=True),
    Question(5, "GAK: alignment rather than the mean of all pairs", WINNER, f"{WINNER}-mean", RETRIEVAL, 1.0),
    Question(5, "the triple kernel rather than CLIP alone", WINNER, f"{WINNER}-clip", RETRIEVAL, 1.0),
    Question(5, "an image's mean rather than its last token", WINNER, f"{WINNER}-image-last", RETRIEVAL, 1.0),
    Question(
        6,
        "WebQA, what retrieval adds",
        f"{WINNER} + own",
        "lm-only + mini-clip",
        (("webqa", "score"),),
        2.0,
        without=(f"{WINNER}, no retrieval", "lm-only, no retrieval"),
    ),
    Question(7, "documents help answers", WINNER, f"{WINNER}-no-data-d", ANSWER_PLACES, 0.5),
    Question(7, "chats help retrieval", WINNER, f"{WINNER}-no-data-g", RETRIEVAL, 1.0),
    Question(
        *(
            1,
            "real documents: held-out loss, nats for each token",
            _REAL,
            "lm-only",
            (("held-out loss", "loss"),),
            0.02,
        ),
        allowed=0.02,
        less=True,
        unit=" nats",
        study=_JOINT,
    ),
    Question(4, "real documents: text and pictures, R@1", _REAL, "infonce", _REAL_MIXED, 2.0, study=_HEADS),
    Question(4, "real documents: text, R@1", _REAL, "infonce", _REAL_TEXT, 2.0, study=_HEADS),
    Question(
        *(5, "real documents: alignment rather than the mean of all pairs", _REAL, f"{_REAL}-mean-labels"),
        *(_REAL_TEXT + _REAL_MIXED, 1.0),
        study=_HEADS,
    ),
    Question(
        *(5, "real documents: the triple kernel rather than CLIP alone", _REAL, f"{_REAL}-clip-alone"),
        *(_REAL_TEXT + _REAL_MIXED, 1.0),
        study=_HEADS,
    ),
    Question(
        6, "real documents: answers with what was found", "own", "minilm", (("answer", "hit"),), 5.0, study=_ASKED
    ),
    Question(
        *(
            8,
            "real documents: calibrated rather than gak",
            _REAL,
            f"{_REAL}-gak-labels",
            _REAL_TEXT + _REAL_MIXED,
            1.0,
        ),
        study=_HEADS,
    ),
    Question(
        *(8, "real documents: calibrated rather than mean", _REAL, f"{_REAL}-mean-labels"),
        *(_REAL_TEXT + _REAL_MIXED, 1.0),
        study=_HEADS,
    ),
    Question(8, "calibrated rather than gak", WINNER, f"{WINNER}-gak", RETRIEVAL, 1.0),
    Question(8, "calibrated rather than mean", WINNER, f"{WINNER}-mean", RETRIEVAL, 1.0),
)
#: Rows of any study that no training changes.
UNTRAINED_ROWS = ("tfidf", "minilm", "minilm-slices", "raw")
#: Studies of one model, which is asked in several ways: no seed tells their rows apart.
OF_ONE_MODEL = ("real-answers",)
#: Why a claim has no question here.
NOT_HERE = {
    3: "a language model of this size does not find the relevant pair at any place, and a curve at chance is flat by "
    "itself",
}
