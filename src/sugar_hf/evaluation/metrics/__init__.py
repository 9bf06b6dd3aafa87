"""Metrics as pure functions of arrays and strings.

Functions of one item give a bool, or a float from 0 to 1; those of many give a dictionary in percent. Each docstring
names the script it follows, and where others differ.
"""

from .choices import (
    ab_choice,
    circular_accuracy,
    demon_clean,
    demon_image_choice,
    demon_text_choice,
    mmbench_choice,
    science_qa_choice,
    science_qa_choice_lmms,
)
from .exact import exact_match, gqa_match, gqa_match_lmms, normalize_answer
from .judged import (
    llava_bench_prompt,
    llava_bench_scores,
    mm_vet_prompt,
    mm_vet_scores,
    parse_mm_vet_score,
    parse_two_scores,
)
from .pairs import pair_accuracy, pair_hits, winoground_scores
from .ranks import MISSED, recall_at_k, target_ranks
from .rouge import rouge_l_coco, rouge_l_demon, rouge_l_google, rouge_l_summary
from .vqa import evalai_accuracy, process_digits_articles, process_punctuation, vqa_accuracy
from .webqa import webqa_accuracy
from .yes_no import binary_scores, first_yes_no, mme_answer, mme_scores, pope_answer, position_curve

__all__ = [
    "MISSED",
    "ab_choice",
    "binary_scores",
    "circular_accuracy",
    "demon_clean",
    "demon_image_choice",
    "demon_text_choice",
    "evalai_accuracy",
    "exact_match",
    "first_yes_no",
    "gqa_match",
    "gqa_match_lmms",
    "llava_bench_prompt",
    "llava_bench_scores",
    "mm_vet_prompt",
    "mm_vet_scores",
    "mmbench_choice",
    "mme_answer",
    "mme_scores",
    "normalize_answer",
    "pair_accuracy",
    "pair_hits",
    "parse_mm_vet_score",
    "parse_two_scores",
    "pope_answer",
    "position_curve",
    "process_digits_articles",
    "process_punctuation",
    "recall_at_k",
    "rouge_l_coco",
    "rouge_l_demon",
    "rouge_l_google",
    "rouge_l_summary",
    "science_qa_choice",
    "science_qa_choice_lmms",
    "target_ranks",
    "vqa_accuracy",
    "webqa_accuracy",
    "winoground_scores",
]
