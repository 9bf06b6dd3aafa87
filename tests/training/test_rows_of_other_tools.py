"""Rows of TRL's vision trainers are trained on as they are."""

import pytest
from builders import picture
from datasets import Dataset, Image, List
from test_sugar_sft import make_sft
from training_tools import chat, logged, make_trainer

USER, ANSWER = "What is in the picture?", ["Two green apples.", "A house.", "A cat on a mat.", "The sun."]


def trl_rows(form: str) -> list[dict]:
    rows = []
    for number, answer in enumerate(ANSWER):
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": USER}]}
        told = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        if form == "plain texts":  # images are put in front of the first user's text
            user, told = {"role": "user", "content": USER}, {"role": "assistant", "content": answer}
        turns = {"prompt": [user], "completion": [told]} if form == "prompt" else {"messages": [user, told]}
        rows.append({**turns, "images": [picture(number)]})
    return rows


@pytest.mark.parametrize("form", ["messages", "prompt", "plain texts"])
@pytest.mark.parametrize(("make", "kind"), [(make_trainer, list), (make_trainer, Dataset), (make_sft, Dataset)])
def test_they_train_like_rows_of_the_schema(tmp_path, form, make, kind):
    rows = trl_rows(form)
    if kind is Dataset:
        rows = Dataset.from_list(rows).cast_column("images", List(Image()))
    settings = {"alpha": 0.0, "max_steps": 1, "train_sampling_strategy": "sequential"}
    ours = [chat(number, answer) for number, answer in enumerate(ANSWER)]
    for row in ours:
        row["messages"] = row["messages"][1:]
    plain = make_trainer(tmp_path / "plain", train_dataset=ours, **settings)
    plain.train()
    trainer = make(tmp_path / "trl", train_dataset=rows, **settings)
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-5)


def test_lengths_of_such_rows_are_estimated(tmp_path):
    trainer = make_trainer(
        tmp_path,
        alpha=0.0,
        train_dataset=Dataset.from_list(trl_rows("prompt")).cast_column("images", List(Image())),
        train_sampling_strategy="group_by_length",
        mini_batch_size=2,
        max_steps=1,
        remove_unused_columns=True,
    )
    trainer.train()
    lengths = trainer.length_estimate.of_dataset(trainer.train_dataset)
    assert max(lengths) == lengths[0]
