"""What labels follow: the lengths of two prefixes, or what is in them."""

import numpy as np
from datasets import load_from_disk

from sugar_hf.structure import SliceFeatures
from sugar_lab.label_content import CONFIGS, label_content, of_rows, random_batches
from sugar_lab.mix import mix_folder, prepare_mix


def texts(rng, length):
    """A sample of texts, whose slices are all about as similar to those of any other."""
    vectors = rng.normal(size=(length, 64)) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = dict.fromkeys(("teacher_clip", "teacher_dino", "teacher_text"), vectors.astype(np.float32))
    return {**columns, "teacher_is_image": np.zeros(length, bool)}


def test_labels_of_gak_follow_lengths_where_contents_are_alike():
    rng = np.random.default_rng(0)
    batches = [SliceFeatures.pad([texts(rng, int(rng.integers(1, 9))) for _ in range(24)]) for _ in range(3)]
    found = label_content(batches)
    assert found.keys() == CONFIGS.keys()
    assert found["mean"]["mean similarity"] == 1
    assert found["gak"]["length difference"] < -0.7
    assert abs(found["calibrated"]["length difference"]) < 0.5
    assert found["calibrated"]["mean similarity"] > found["gak"]["mean similarity"]


def test_the_drawn_world_has_batches_of_its_own(tmp_path):
    rows = prepare_mix("all", 36, 0, tmp_path)
    assert of_rows(rows) == of_rows(load_from_disk(str(mix_folder("all", 36, 0, tmp_path))))
    assert next(iter(random_batches(5))) == list(range(5))
    assert all(len(set(batch)) == 48 for batch in random_batches(100))
