"""Teacher vectors while training: computed for each batch, or stored before."""

import numpy as np
import pytest
import torch
from tiny_teachers import save_tiny_teachers
from training_tools import logged, make_dataset, make_sugar, make_trainer

from sugar_hf.data import BadSampleError, to_sample
from sugar_hf.retrieval import SugarEmbedder
from sugar_hf.structure import EncoderTeacher, TripleTeacher
from sugar_hf.training import SugarCollator


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    checkpoints = save_tiny_teachers(tmp_path_factory.mktemp("teachers"))
    return TripleTeacher.from_pretrained(**checkpoints, show_progress=False)


@pytest.fixture(scope="module")
def processor():
    return make_sugar()[1]


@pytest.fixture(scope="module")
def cached(teacher, processor):
    return teacher.cache(make_dataset(processor, cached=False), lambda row: processor.slices(to_sample(row)))


def test_online_vectors_equal_cached_ones(teacher, processor, cached):
    stored = SugarCollator(processor)(list(cached))["structure_features"]
    online = SugarCollator(processor, teacher)(list(make_dataset(processor, cached=False)))["structure_features"]
    assert stored.keys() == online.keys()
    # float16 columns; batches of another size round differently by a unit in the last place
    torch.testing.assert_close(online, stored, atol=2e-3, rtol=0)


def test_online_training_has_the_losses_of_cached_training(tmp_path, teacher, processor, cached):
    online = make_trainer(tmp_path / "a", train_dataset=make_dataset(processor, cached=False), teacher=teacher)
    stored = make_trainer(tmp_path / "b", train_dataset=cached)
    for trainer in (online, stored):
        trainer.train()
    for name in ("loss_lm", "loss_structure"):
        assert logged(online, name) == pytest.approx(logged(stored, name), rel=1e-3)


def test_any_encoder_can_be_the_teacher(tmp_path, processor):
    teacher = EncoderTeacher(SugarEmbedder(*make_sugar(seed=5)), show_progress=False)
    online = make_trainer(tmp_path / "a", train_dataset=make_dataset(processor, cached=False), teacher=teacher)
    rows = teacher.cache(make_dataset(processor, cached=False), lambda row: processor.slices(to_sample(row)))
    stored = make_trainer(tmp_path / "b", train_dataset=rows, centring=True)
    assert stored.args.block_means.keys() == {"image-image", "text-text", "image-text"}
    for trainer in (online, stored):
        trainer.train()
        assert all(loss > 0 for loss in logged(trainer, "loss_structure"))


class OneVector:
    """A teacher with what `Teacher` lists and nothing else: all slices are the same to it."""

    show_progress, fingerprint, widths, device = True, "own=1", (2, 0, 0), torch.device("cpu")

    def embed(self, samples):
        return [
            {
                "teacher_clip": np.ones((len(sample), 2), np.float16),
                "teacher_dino": np.zeros((len(sample), 0), np.float16),
                "teacher_text": np.zeros((len(sample), 0), np.float16),
                "teacher_is_image": [not isinstance(part, str) for part in sample],
                "teacher_fingerprint": self.fingerprint,
            }
            for sample in samples
        ]


def test_a_teacher_of_ones_own_needs_the_protocol_alone(tmp_path, processor):
    rows = make_dataset(processor, cached=False)
    features = SugarCollator(processor, OneVector())(list(rows))["structure_features"]
    assert features["clip"].shape[-1] == 2
    trainer = make_trainer(tmp_path, train_dataset=rows, teacher=OneVector(), label_statistics_steps=1)
    trainer.train()
    assert logged(trainer, "label_mean") == pytest.approx([1.0, 1.0], abs=1e-3)


def test_the_users_teachers_keep_their_progress_bar(teacher, processor):
    teacher.show_progress = True
    assert not SugarCollator(processor, teacher).teacher.show_progress
    assert teacher.show_progress
    teacher.show_progress = False


def test_columns_of_other_teachers_are_refused(tmp_path, teacher, processor, cached):
    other = TripleTeacher.from_pretrained(**save_tiny_teachers(tmp_path, seed=1), show_progress=False)
    with pytest.raises(BadSampleError, match=r"'document-0'.*cache the whole data set anew|Cache the whole data set"):
        SugarCollator(processor, other)(list(cached))
    with pytest.raises(ValueError, match="cached teacher columns are stale"):
        make_trainer(tmp_path, train_dataset=cached, teacher=other)


def test_truncated_sample_keeps_the_vectors_of_its_first_slices(teacher, processor):
    [row] = make_dataset(processor, cached=False).select([7])
    whole = SugarCollator(processor, teacher)([row])["structure_features"]
    with pytest.warns(UserWarning, match="dropped its last"):
        cut = SugarCollator(processor, teacher, max_length=40, truncation="slice")([row])["structure_features"]
    kept = int(cut["lengths"])
    assert 0 < kept < int(whole["lengths"])
    torch.testing.assert_close(cut["clip"], whole["clip"][:, :kept])
