"""The paper's claims as questions to outcomes: rows, places, and the smallest difference worth telling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .evidence import ANSWERS, WINNER
from .model_rows import CLIP, DEFAULT
from .table_layout import GENERATION as SURVEY_GENERATION
from .table_layout import RETRIEVAL as SURVEY_RETRIEVAL

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
        study: whose outcomes tell; `SURVEY` for figures of single seeds, whose places are `(table/column, "")`.
        is_aim: a goal or a row beside the claim, which does not count for it.
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

#: The study of the survey's figures, of which each seed has one. Its rows are compared with `mse`.
SURVEY = "survey"
_SURVEYED: Places = tuple((place, "") for place in SURVEY_RETRIEVAL)
_ANSWERED: Places = tuple((place, "") for place in SURVEY_GENERATION)
#: The studies on real documents, and the row of the setting that won there.
_HEADS, _JOINT, _ASKED, _REAL = "real-test", "real-joint", "real-answers", "kl-0.3"
_LONGEST, _LABELS = "real-longest", "real-labels"
_TEXT: Places = (("gimp/title", "R@1"), ("gimp/rest", "R@1"))
_MIXED: Places = tuple(
    (task, "R@1")
    for task in ("gimp/next", "gimp/caption", "gimp/picture", "stamps/stamp_caption", "stamps/stamp_picture")
)
_TRAINED: Places = tuple((task, "R@1") for task in ("gimp/title", "gimp/next", "gimp/caption"))
_BEND: Places = (("middle less ends", "score"),)
_ANSWERS: Places = (("answer", "hit"),)
_HELD_OUT: Places = (("held-out loss", "loss"),)
_ANSWER_LOSS: Places = (("answer-loss", "loss"),)
_FALSE: Places = (("llava-w false", "score"),)
#: The rows of the study whose heads begin whitened, as they do by default.
_WHITENED, _WHITENED_NCE = "kl-0.15-whitened", "infonce-0.1-whitened"
#: InfoNCE at its usual temperature, and at its best one.
INFONCE = ("infonce", "infonce-0.2")
#: The latter from a whitened head, as the default has it.
WHITENED_NCE = "infonce-0.2-whitened"


def _survey(claim: int, text: str, rival: str, places: Places, row: str = "mse") -> Question:
    return Question(claim, f"survey: {text}", row, rival, places, 2.0, study=SURVEY)


def _real(claim: int, text: str, rival: str, places: Places = _TEXT + _MIXED, worth: float = 1.0) -> Question:
    return Question(claim, f"real documents: {text}, R@1", _REAL, rival, places, worth, study=_HEADS)


def _loss(study: str, row: str, places: Places, text: str) -> Question:
    """That joint training costs at most 0.02 nats of the loss of the language model."""
    found = Question(1, text, row, "lm-only", places, 0.02, allowed=0.02, less=True)
    return replace(found, unit=" nats", study=study)


def _bend(row: str, study: str, when: str) -> Question:
    """That answers are better by less when the paragraph stands at an end."""
    text = f"real documents: answers with the paragraph at middle places less those with it at the ends{when}"
    return Question(3, text, row, "lm-only", _BEND, 5.0, study=study)


def _labels(claim: int, text: str, kernel: str) -> Question:
    """That the default's labels retrieve better than those of another kernel, from the same whitened head."""
    rival = f"{DEFAULT}-{kernel}"
    return Question(claim, f"from whitened heads: {text}, mean of four recalls@1", DEFAULT, rival, RETRIEVAL, 2.0)


def _white_labels(claim: int, text: str, kernel: str) -> Question:
    """The same of heads on real documents."""
    rival = f"{_WHITENED}-{kernel}-labels"
    return replace(_real(claim, f"from whitened heads: {text}", rival), row=_WHITENED, study=_LABELS)


def _beside(question: Question) -> Question:
    return replace(question, is_aim=True)


def _answers(row: str, text: str) -> Question:
    return Question(1, f"answers, mean of five benchmarks, {text}", row, "lm-only", ANSWER_PLACES, 0.5, allowed=0.5)


QUESTIONS: Sequence[Question] = (
    _answers(DEFAULT, "by default"),
    _loss("lab", DEFAULT, _ANSWER_LOSS, "loss of held-out answers, nats for each token, by default"),
    _beside(_answers(WINNER, "at the highest recall")),
    _beside(_loss("lab", WINNER, _ANSWER_LOSS, "loss of held-out answers, at the highest recall")),
    _beside(_answers("mse", "with the squared error of the paper")),
    _beside(_loss("lab", "mse", _ANSWER_LOSS, "loss of held-out answers, with the squared error")),
    _loss(_LONGEST, _WHITENED, _HELD_OUT, "real documents: held-out loss, nats for each token, by default"),
    _beside(_loss(_JOINT, _WHITENED, _HELD_OUT, "real documents: the same after 24 steps")),
    _beside(_loss(_JOINT, "kl-0.15", _HELD_OUT, "real documents: the same from a head that began at random")),
    _beside(_loss(_JOINT, "mse", _HELD_OUT, "real documents: held-out loss, with the squared error")),
    Question(2, "what descriptions state falsely, by default", DEFAULT, "lm-only", _FALSE, 1.0, less=True),
    _beside(Question(2, "the same at the highest recall", WINNER, "lm-only", _FALSE, 1.0, less=True)),
    _bend(_WHITENED, "real-asked-curve", ""),
    _beside(_bend("kl-0.15", "real-curve", ", after 24 steps")),
    *(
        Question(4, "mean of four recalls@1, by default", DEFAULT, rival, RETRIEVAL, 2.0)
        for rival in (*INFONCE, WHITENED_NCE)
    ),
    *(Question(4, "mean of four recalls@1", WINNER, rival, RETRIEVAL, 2.0) for rival in INFONCE),
    *(
        Question(4, text, WINNER, rival, places, 2.0)
        for rival in (*INFONCE, CLIP)
        for text, places in (
            ("last picture of a story (5c+4i, dagger), R@1", _STORY),
            ("the same with the pictures seen kept, R@1", _SEEN),
            ("two captions of the same words, group", _FINE),
        )
    ),
    *(
        Question(4, "last picture of a story, R@1", WINNER, rival, _STORY, 0.0, factor, is_aim=True)
        for rival, factor in ((INFONCE[0], 1.5), (INFONCE[1], 1.5), (CLIP, 2.0))
    ),
    *(
        Question(4, "last picture of a story, R@1, by default", DEFAULT, rival, _STORY, 0.0, factor, is_aim=True)
        for rival, factor in ((INFONCE[0], 1.5), (WHITENED_NCE, 1.5), (CLIP, 2.0))
    ),
    _real(4, "text and pictures", "infonce-0.1", _MIXED, 2.0),
    _real(4, "text", "infonce-0.1", _TEXT, 2.0),
    *(
        _beside(replace(_real(4, text, _WHITENED_NCE, places, 2.0), row=_WHITENED))
        for text, places in (("text and pictures, both from whitened heads", _MIXED), ("text, the same", _TEXT))
    ),
    Question(
        4,
        "real documents, trained whole from whitened heads, R@1",
        _WHITENED,
        _WHITENED_NCE,
        _TRAINED,
        2.0,
        study=_LONGEST,
    ),
    _survey(5, "GAK: alignment rather than the mean of all pairs", "mean", _SURVEYED),
    _survey(5, "the triple kernel rather than CLIP alone", "clip-only", _SURVEYED),
    _survey(5, "an image's mean rather than its last token", "last-token", _SURVEYED),
    _real(5, "alignment rather than the mean of all pairs", f"{_REAL}-mean-labels"),
    _labels(5, "alignment rather than the mean of all pairs", "mean"),
    _white_labels(5, "alignment rather than the mean of all pairs", "mean"),
    _real(5, "the triple kernel rather than CLIP alone", f"{_REAL}-clip-alone"),
    replace(
        _survey(6, "WebQA, what retrieval adds", "lm-only + mini-clip", (("table7/WebQA", ""),), "mse + own average"),
        without=("mse, no retrieval", "lm-only, no retrieval"),
    ),
    Question(
        *(6, "real documents: answers of a model trained whole, with what was found", "own", "encoder", _ANSWERS, 5.0),
        study="real-asked",
    ),
    _beside(
        Question(6, "real documents: the same before joint training", "own", "minilm", _ANSWERS, 5.0, study=_ASKED)
    ),
    _survey(7, "documents help answers", "no-data-d", _ANSWERED),
    _survey(7, "chats help retrieval", "no-data-g", _SURVEYED),
    _survey(8, "calibrated rather than gak", "gak", _SURVEYED),
    _survey(8, "calibrated rather than mean", "mean", _SURVEYED),
    _real(8, "calibrated rather than gak", f"{_REAL}-gak-labels"),
    _real(8, "calibrated rather than mean", f"{_REAL}-mean-labels"),
    *(
        ask(8, f"calibrated rather than {kernel}", kernel)
        for kernel in ("gak", "mean")
        for ask in (_labels, _white_labels)
    ),
)
#: Rows of any study that no training changes.
UNTRAINED_ROWS = ("tf-idf", "minilm", "minilm-slices", "raw")
#: Studies of one model, which is asked in several ways: no seed tells their rows apart.
OF_ONE_MODEL = ("real-answers",)
