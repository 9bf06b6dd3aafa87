"""What a batch holds: labels on the right tokens, teacher vectors of the right slices."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from training_tools import chat, document, make_dataset, make_rows, make_sugar, teacher_columns

from sugar_hf.data import BadSampleError
from sugar_hf.structure import SliceFeatures
from sugar_hf.training import SugarCollator
from sugar_hf.training.collator import sample_key


@pytest.fixture(scope="module")
def processor():
    return make_sugar()[1]


@pytest.fixture(scope="module")
def rows(processor):
    return list(make_dataset(processor))


def labelled_text(processor, batch, i):
    return processor.decode(batch["input_ids"][i][batch["labels"][i] != -100])


def test_labels_of_a_chat_are_the_answer_and_the_end_of_turn(processor):
    batch = SugarCollator(processor)([chat(1, "Two green apples.")])
    assert labelled_text(processor, batch, 0).replace(" ", "") == "Twogreenapples.</s>"


def test_labels_of_a_document_are_all_of_its_text_and_no_image_token(processor):
    row = document(0, "titi")
    batch = SugarCollator(processor)([row])
    said = labelled_text(processor, batch, 0)
    for part in row["messages"][0]["content"]:
        assert part["type"] == "image" or part["text"] in said
    assert "<image>" not in said
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch["input_ids"] == image_token).sum() == 18
    assert not ((batch["input_ids"] == image_token) & (batch["labels"] != -100)).any()


def test_padding_has_no_labels_and_no_slices(processor, rows):
    batch = SugarCollator(processor)(rows)
    assert (batch["attention_mask"] == 0).any()
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert (batch["slice_map"][batch["attention_mask"] == 0] == 0).all()


def test_cached_vectors_belong_to_the_slices_of_the_map(processor, rows):
    batch = SugarCollator(processor)(rows)
    features = SliceFeatures(**batch["structure_features"])
    assert features.lengths.tolist() == batch["slice_map"].abs().amax(1).tolist()
    columns = teacher_columns(make_rows()[3], processor)
    torch.testing.assert_close(
        features.clip[3, :5], torch.from_numpy(columns["teacher_clip"].astype(np.float32)), atol=1e-3, rtol=0
    )
    assert features.is_image[3, :5].tolist() == [False, False, True, True, False]
    assert batch["sample_ids"] == [row["id"] for row in rows]
    assert batch["sample_keys"].tolist() == [sample_key(row["id"]) for row in rows]


def test_without_columns_and_teachers_there_are_no_features(processor):
    assert "structure_features" not in SugarCollator(processor)(make_rows())


def test_half_cached_batch_is_refused(processor, rows):
    with pytest.raises(BadSampleError, match=r"'document-2'.*no teacher vectors"):
        SugarCollator(processor)([rows[0], make_rows()[2]])


def test_stale_cache_is_refused_with_the_samples_name(processor, rows):
    stale = {**rows[0], "messages": document(0, "tit")["messages"], "images": rows[0]["images"][:1]}
    with pytest.raises(BadSampleError, match=r"'document-0'.*3 slices, but teacher vectors of 4.*make it again"):
        SugarCollator(processor)([rows[1], stale])


def test_vectors_of_two_sets_of_teachers_are_refused(processor, rows):
    with pytest.raises(BadSampleError, match=r"'chat-1'.*of the teachers other"):
        SugarCollator(processor)([rows[0], {**rows[1], "teacher_fingerprint": "other"}])


def test_truncation_drops_the_slices_and_their_vectors(processor, rows):
    whole = SugarCollator(processor)(rows)
    collate = SugarCollator(processor, max_length=40, truncation="slice")
    with pytest.warns(UserWarning, match="dropped its last"):
        batch = collate(rows)
    lengths = batch["structure_features"]["lengths"]
    assert lengths.tolist() == batch["slice_map"].abs().amax(1).tolist()
    assert (lengths < whole["structure_features"]["lengths"]).any()


def test_too_long_sample_is_an_error_that_names_the_row(processor, rows):
    with pytest.raises(ValueError, match="max_length=30") as caught:
        SugarCollator(processor, max_length=30)(rows[:2])
    assert "tests (sample 'document-0'): messages: " in str(caught.value)


def test_workers_make_the_same_batches(processor):
    dataset = make_dataset(processor)
    batches = [
        list(DataLoader(dataset, batch_size=4, collate_fn=SugarCollator(processor), num_workers=workers))
        for workers in (0, 2)
    ]
    for ours, theirs in zip(*batches, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours.pop("sample_ids") == theirs.pop("sample_ids")
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
