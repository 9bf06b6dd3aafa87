"""Training on queries with what answers them: from rows to batches, to the loss, and through a run."""

import io

import numpy as np
import pytest
import torch
from builders import picture
from datasets import Dataset, Image, interleave_datasets
from test_sugar_sft import make_sft
from training_tools import (
    chat,
    document,
    first_step,
    logged,
    make_dataset,
    make_pairs,
    make_rows,
    make_sugar,
    make_trainer,
    pair,
)

from sugar_hf import SugarEmbedder
from sugar_hf.data import BadSampleError, to_samples
from sugar_hf.structure import PairLabels, SliceFeatures, StructureLossConfig, label_matrix
from sugar_hf.training import SugarCollator, draw_slice_ends
from sugar_hf.training.collator import LengthEstimate, MiniBatchCollator
from sugar_hf.training.pair_batches import ScoreScale
from sugar_hf.training.training_record import example


@pytest.fixture(scope="module")
def processor():
    return make_sugar()[1]


def labels_of(batch, config=None):
    """The label matrix of the last ends of a batch."""
    known = PairLabels(**batch["pair_labels"])
    ends = torch.stack([torch.arange(len(known)), known.lengths - 1], 1)
    features = batch.get("structure_features")
    plain = None if features is None else label_matrix(SliceFeatures(**features), ends, config)
    return known.compose(plain, ends, config or StructureLossConfig()).labels


# ---- Batches ----


def test_a_pair_becomes_its_samples(processor):
    row = pair(0, ("t", "it"), ("tt",), instruction="Find the caption.")
    batch = SugarCollator(processor)([row])
    names = ["pair-0#query", "pair-0#positives[0]", "pair-0#positives[1]", "pair-0#negatives[0]"]
    assert batch["sample_ids"] == names
    alone = processor(to_samples(row))
    for name in ("input_ids", "attention_mask", "slice_map"):
        assert torch.equal(batch[name], alone[name])
    assert batch["pair_labels"]["lengths"].tolist() == [2, 1, 2, 2]
    assert labels_of(batch)[0].tolist() == [1, 1, 1, 0]


def test_columns_of_other_tools_give_the_same_batch(processor):
    texts = {"anchor": "A cat.", "positive": "A dog.", "negative_1": "A sun.", "negative_2": "A lake."}
    rows = [
        texts,
        Dataset.from_list([texts])[0],
        {"query": "A cat.", "positives": ["A dog."], "negatives": ["A sun.", "A lake."]},
        {"query": "A cat.", "pos": ["A dog."], "neg": ["A sun.", "A lake."]},
    ]
    collate = SugarCollator(processor)
    batches = [collate([row]) for row in rows]
    for batch in batches[1:]:
        assert torch.equal(batch["input_ids"], batches[0]["input_ids"])
        for name, tensor in batch["pair_labels"].items():
            assert torch.equal(tensor, batches[0]["pair_labels"][name])
    pictures = Dataset.from_dict({"anchor": ["A cat."], "positive": [picture(3)]}).cast_column("positive", Image())
    assert torch.equal(collate(list(pictures))["slice_map"].abs().amax(1), torch.tensor([1, 1]))


def test_labels_of_scores(processor):
    row = pair(0, ("t",), ("t", "i"), scores=[3.0, 0.0, -3.0])
    found = labels_of(SugarCollator(processor, score_mapping="logit")([row]))[0]
    torch.testing.assert_close(found, torch.tensor([1.0, 0.9525741, 0.5, 0.0474259]))
    found = labels_of(SugarCollator(processor, score_range=[-3, 3])([row]))[0]
    assert found.tolist() == [1, 1, 0.5, 0]
    row = {**row, "scores": [0.8, 0.2, -0.2]}
    torch.testing.assert_close(labels_of(SugarCollator(processor)([row]))[0], torch.tensor([1, 0.8, 0.2, -0.2]))
    assert ScoreScale("logit").label(-1e4, "scores[0]") == 0


@pytest.mark.parametrize(
    ("scale", "mend"),
    [({}, "score_mapping"), ({"score_range": [0, 1]}, "score_range"), ({"score_range": [0, 2]}, None)],
)
def test_scores_that_are_no_labels_are_refused(processor, scale, mend):
    row = pair(0, scores=[1.5])
    if mend is None:
        assert labels_of(SugarCollator(processor, **scale)([row]))[0, 1] == 0.75
        return
    with pytest.raises(BadSampleError, match=mend) as caught:
        SugarCollator(processor, **scale)([row])
    assert (caught.value.sample, caught.value.field) == ("pair-0", "scores[0]")


def test_cached_vectors_of_a_pair_are_those_of_its_samples(processor):
    rows = make_dataset(processor, [*make_pairs(), chat(1)]).to_list()
    batch = SugarCollator(processor)(rows)
    features = SliceFeatures(**batch["structure_features"])
    assert features.lengths.tolist() == batch["pair_labels"]["lengths"].tolist()
    images = [
        sum(part["type"] == "image" for message in s for part in message["content"])
        if isinstance(s[0], dict)
        else sum(not isinstance(part, str) for part in s)
        for row in rows
        for s in to_samples(row)
    ]
    assert features.is_image.sum(1).tolist() == images
    ends = torch.stack([torch.arange(len(features)), features.lengths - 1], 1)
    plain, composed = label_matrix(features, ends), labels_of(batch)
    changed = (plain != composed).nonzero().tolist()
    assert [0, 1] in changed
    assert [0, 4] not in changed
    stale = {**rows[0], "teacher_is_image": rows[0]["teacher_is_image"][:-1]}
    with pytest.raises(BadSampleError, match="stale") as caught:
        SugarCollator(processor)([stale])
    assert caught.value.sample == "pair-0"


def test_nothing_of_a_pair_is_learnt_by_the_language_model_unless_asked(processor):
    rows = [pair(0), document(1, "t") | {"query": None, "positives": None}]
    batch = SugarCollator(processor)(rows)
    assert [(row != -100).any().item() for row in batch["labels"]] == [False, False, True]
    batch = SugarCollator(processor, pairs_lm_loss=True)(rows)
    assert [(row != -100).any().item() for row in batch["labels"]] == [True, True, True]


def test_a_bad_sample_is_named_by_its_place_and_left_out_alone(processor):
    broken = pair(0, ("t",), ("i",))
    broken["negatives"][0]["images"] = [{"bytes": b"none", "path": None}]
    with pytest.raises(BadSampleError) as caught:
        SugarCollator(processor)([broken])
    assert (caught.value.sample, caught.value.field) == ("pair-0", "negatives[0].images[0]")
    without = {**pair(1), "positives": []}
    collate = SugarCollator(processor, on_bad_sample="skip")
    batch = collate([broken, without, pair(2)])
    assert len(batch["bad_samples"]) == 2
    assert batch["sample_ids"] == ["pair-0#query", "pair-0#positives[0]", "pair-2#query", "pair-2#positives[0]"]
    mini = list(MiniBatchCollator(collate, lambda row: 1, size=2, members=collate.members)([broken, without, pair(2)]))
    assert sorted(name for each in mini for name in each["sample_ids"]) == sorted(batch["sample_ids"])
    assert sum(len(each["bad_samples"]) for each in mini) == 2
    nothing = collate([without])
    assert nothing["sample_ids"] == []
    assert len(nothing["pair_labels"]["samples"]) == 0


def test_the_last_end_of_a_sample_of_a_pair_is_always_drawn():
    for step in range(20):
        ends = draw_slice_ends([9, 9, 2], [3, 4, 5], 2, step=step, keep_last=[True, False, True]).tolist()
        assert [0, 8] in ends
        assert len(ends) == 6
        assert draw_slice_ends([9], [3], 1, step=step, keep_last=[True]).tolist() == [[0, 8]]
    assert (
        draw_slice_ends([9, 9], [3, 4], 2, keep_last=[False, True])[:2].tolist()
        == draw_slice_ends([9], [3], 2).tolist()
    )


def test_lengths_of_pairs_are_those_of_their_samples(processor):
    collate = SugarCollator(processor)
    rows = make_dataset(processor, [*make_pairs(), *make_rows()], cached=False)
    exact = [int(collate([row])["attention_mask"].sum()) for row in rows]
    estimate = LengthEstimate.fit(rows, lambda row: int(collate([row])["attention_mask"].sum()))
    found = estimate.of_dataset(rows)
    assert np.corrcoef(found, exact)[0, 1] > 0.95
    assert sum(found) == pytest.approx(sum(exact), rel=0.1)


# ---- Instructions ----


def test_instructions_have_the_tokens_in_training_that_they_have_in_search():
    model, processor = make_sugar()
    row = {"query": [picture(1), "A cat."], "positives": ["A dog."], "instruction": "Find the caption."}
    batch = SugarCollator(processor)([row])
    seen = []
    embedder = SugarEmbedder(model, processor)
    call = type(processor).__call__

    class Watched(type(processor)):
        def __call__(self, *args, **kwargs):
            features = call(self, *args, **kwargs)
            seen.append(features)
            return features

    processor.__class__ = Watched
    vector = embedder.encode([row["query"]], prompt="Find the caption.")
    [features] = seen
    length = int(batch["attention_mask"][0].sum())
    real = batch["attention_mask"][0].bool()
    for name in ("input_ids", "slice_map"):
        assert batch[name][0][real].tolist() == features[name][0, -length:].tolist()
    assert int(batch["slice_map"][0].abs().max()) == 2  # the instruction is no slice
    plain = embedder.encode([row["query"]])
    assert abs(vector - plain).max() > 1e-3
    slices = embedder.encode_slices([row["query"]], prompt="Find the caption.")[0]
    assert slices[-1] == pytest.approx(vector[0], abs=1e-5)


# ---- The loss of a step ----


@pytest.mark.parametrize(
    ("cached", "options"),
    [
        (True, {"mini_batch_size": 3}),
        (False, {"mini_batch_size": 2, "objective": "infonce", "alpha": 0.3}),
        (False, {"mini_batch_tokens": 60, "positions_per_sample": 1, "objective": "kl", "alpha": 0.3}),
    ],
)
def test_mini_batches_give_the_step_of_the_whole_batch(tmp_path, processor, cached, options):
    rows = make_dataset(processor, [*make_pairs(), *make_rows()[:2]], cached)
    options = {"per_device_train_batch_size": 8, "alpha": 0.3, **options}
    ours, mini = first_step(tmp_path / "a", train_dataset=rows, **options)
    whole = {name: value for name, value in options.items() if not name.startswith("mini")}
    theirs, plain = first_step(tmp_path / "b", train_dataset=rows, **whole)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4)
    for name in ("loss", "loss_lm", "loss_structure"):
        assert logged(mini, name) == pytest.approx(logged(plain, name), rel=1e-4)
    assert logged(plain, "loss_structure")[0] > 0


def test_structure_loss_of_pairs_is_that_of_the_composed_labels(tmp_path, processor):
    from sugar_hf.structure import structure_loss

    rows = make_dataset(processor, make_pairs(), cached=False)
    trainer = make_trainer(tmp_path, train_dataset=rows, per_device_train_batch_size=6, alpha=1.0)
    batch = SugarCollator(processor)(list(rows))
    known = PairLabels(**batch.pop("pair_labels"))
    keys = batch.pop("sample_keys")
    ends = draw_slice_ends(known.lengths.tolist(), keys.tolist(), 4, 3, 0, [True] * len(keys))
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        embeddings = trainer.model(**inputs).retrieval_embeds[ends[:, 0], ends[:, 1]]
    whole = known.compose(None, ends, StructureLossConfig())
    expected = structure_loss(embeddings, whole.labels, left_out=whole.left_out)
    trainer.train()
    assert logged(trainer, "loss_structure")[0] == pytest.approx(float(expected), rel=1e-4)
    assert logged(trainer, "loss_lm") == [0.0, 0.0]


# ---- Runs ----


def nearness(trainer, rows):
    """Mean cosine of queries with their positives, and with their negatives."""
    embedder = SugarEmbedder(trainer.model, trainer.processing_class)
    near, far = [], []
    for row in rows:
        query, *others = embedder.encode(to_samples(row), show_progress=False)
        count = len(row["positives"])
        near += [float(query @ other) for other in others[:count]]
        far += [float(query @ other) for other in others[count:]]
    return sum(near) / len(near), sum(far) / len(far)


@pytest.mark.parametrize("objective", ["mse", "infonce", "kl"])
def test_positives_come_nearer_than_negatives_without_a_teacher(tmp_path, processor, objective):
    rows = make_dataset(processor, [pair(n, ("t",), ("t",)) for n in range(4)], cached=False)
    trainer = make_trainer(
        tmp_path,
        train_dataset=rows,
        eval_dataset=rows,
        objective=objective,
        alpha=1.0,
        positions_per_sample=1,
        max_steps=40,
        learning_rate=3e-3,
    )
    before = trainer.evaluate()["eval_loss_structure"]
    trainer.train()
    assert trainer.evaluate()["eval_loss_structure"] < 0.5 * before
    near, far = nearness(trainer, rows)
    assert near > far + 0.1


def test_pairs_chats_and_documents_in_one_run_with_a_share_for_each(tmp_path, processor):
    pairs = make_dataset(processor, make_pairs() * 4, cached=False)
    others = make_dataset(processor, make_rows() * 4, cached=False)
    rows = interleave_datasets([pairs, others], probabilities=[0.5, 0.5], seed=0)
    trainer = make_trainer(
        tmp_path, train_dataset=rows, max_steps=4, objective="infonce", alpha=0.3, remove_unused_columns=True
    )
    trainer.train()
    assert min(logged(trainer, "loss_lm")) > 0
    assert max(logged(trainer, "loss_structure")) > 0
    assert set(trainer.train_dataset.column_names) >= {"query", "positives", "messages"}


def test_trls_trainer_and_worker_processes(tmp_path, processor):
    rows = make_dataset(processor, make_pairs(), cached=False)
    options = {"mini_batch_size": 3, "head_whitening_samples": None}
    plain = make_trainer(tmp_path, train_dataset=rows, dataloader_num_workers=1, **options)
    sft = make_sft(tmp_path, train_dataset=rows, max_steps=2)
    for trainer in (plain, sft):
        trainer.train()
    assert logged(sft, "loss_structure") == pytest.approx(logged(plain, "loss_structure"), rel=1e-5)


def test_pairs_without_anything_to_learn_are_refused(tmp_path, processor):
    rows = make_dataset(processor, make_pairs(), cached=False)
    with pytest.raises(ValueError, match="pairs_lm_loss"):
        make_trainer(tmp_path, train_dataset=rows, alpha=0.0)
    trainer = make_trainer(tmp_path, train_dataset=rows, alpha=0.0, pairs_lm_loss=True)
    trainer.train()
    assert min(logged(trainer, "loss_lm")) > 0


def test_a_card_shows_the_samples_of_a_pair():
    shown = example({**pair(0, ("t",), ("i",)), "messages": None})
    query, positives, negatives = shown.split("; ")
    assert query.startswith("query: document: (image of ")
    assert positives.startswith('positives: [document: "A ')
    assert negatives.startswith("negatives: [document: (image of")


def test_documents_alone_still_need_teachers(tmp_path, processor):
    with pytest.raises(ValueError, match="lacks the columns"):
        make_trainer(tmp_path, train_dataset=make_dataset(processor, cached=False))


def test_a_resumed_run_of_pairs_has_the_losses_of_the_uninterrupted_one(tmp_path, processor):
    options = {
        "train_dataset": make_dataset(processor, [*make_pairs(), *make_rows()[:3]]),
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "mini_batch_size": 3,
        "positions_per_sample": 2,
        "batch_sampler": "no_duplicates",
    }
    whole = make_trainer(tmp_path, **options)
    whole.train()
    rest = make_trainer(tmp_path, seed=1, **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(logged(rest, "loss")) == 6
    for name in ("loss", "loss_structure"):
        assert logged(rest, name) == logged(whole, name)


def test_a_picture_is_known_by_its_bytes(processor):
    """Two rows with one picture as their positive: it is no negative of either query."""
    buffer = io.BytesIO()
    picture(5).save(buffer, format="PNG")
    rows = [{"query": text, "positives": [buffer.getvalue()]} for text in ("A cat.", "A dog.")]
    batch = SugarCollator(processor)(rows)
    assert labels_of(batch).tolist() == [[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
