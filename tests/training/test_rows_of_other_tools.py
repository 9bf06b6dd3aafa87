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


SETTINGS = {"alpha": 0.0, "max_steps": 1, "train_sampling_strategy": "sequential"}


@pytest.fixture(scope="module")
def loss_of_the_schema(tmp_path_factory):
    rows = [chat(number, answer) for number, answer in enumerate(ANSWER)]
    for row in rows:
        row["messages"] = row["messages"][1:]
    trainer = make_trainer(tmp_path_factory.mktemp("plain"), train_dataset=rows, **SETTINGS)
    trainer.train()
    return logged(trainer, "loss")


def test_they_train_like_rows_of_the_schema(tmp_path, loss_of_the_schema, subtests):
    for form, make, kind in [
        ("messages", make_trainer, list),
        ("prompt", make_trainer, Dataset),
        ("plain texts", make_trainer, list),
        ("messages", make_sft, Dataset),
        ("prompt", make_sft, Dataset),
    ]:
        with subtests.test(form=form, make=f"{make!r:.60}", kind=f"{kind!r:.60}"):
            rows = trl_rows(form)
            if kind is Dataset:
                rows = Dataset.from_list(rows).cast_column("images", List(Image()))
            trainer = make(tmp_path, train_dataset=rows, **SETTINGS)
            trainer.train()
            assert logged(trainer, "loss") == pytest.approx(loss_of_the_schema, rel=1e-5)


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
