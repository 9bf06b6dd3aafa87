"""Scorers of the named benchmarks, as pure functions of strings.

Functions of one item give a bool, or a float from 0 to 1; those of many give a dictionary in percent. Each docstring
names the script it follows, and where others differ.
"""

from .choice_scorers import (
    ab_choice,
    circular_accuracy,
    demon_clean,
    demon_image_choice,
    demon_text_choice,
    mmbench_choice,
    science_qa_choice,
    science_qa_choice_lmms,
)
from .judge_scorers import (
    llava_bench_prompt,
    llava_bench_scores,
    mm_vet_prompt,
    mm_vet_scores,
    parse_mm_vet_score,
    parse_two_scores,
)
from .rouge import rouge_l_coco, rouge_l_demon, rouge_l_google, rouge_l_summary
from .vqa_scorers import evalai_accuracy, process_digits_articles, process_punctuation, vqa_accuracy
from .webqa_scorers import webqa_accuracy
from .yes_no_scorers import binary_scores, first_yes_no, mme_answer, mme_scores, pope_answer, position_curve

__all__ = [
    "ab_choice",
    "binary_scores",
    "circular_accuracy",
    "demon_clean",
    "demon_image_choice",
    "demon_text_choice",
    "evalai_accuracy",
    "first_yes_no",
    "llava_bench_prompt",
    "llava_bench_scores",
    "mm_vet_prompt",
    "mm_vet_scores",
    "mmbench_choice",
    "mme_answer",
    "mme_scores",
    "parse_mm_vet_score",
    "parse_two_scores",
    "pope_answer",
    "position_curve",
    "process_digits_articles",
    "process_punctuation",
    "rouge_l_coco",
    "rouge_l_demon",
    "rouge_l_google",
    "rouge_l_summary",
    "science_qa_choice",
    "science_qa_choice_lmms",
    "vqa_accuracy",
    "webqa_accuracy",
]
