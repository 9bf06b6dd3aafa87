"""The table in docs/backbones.md has a row for every type; `make test-families` compares each with what comes out."""

import warnings

import transformers
from backbone_table import MEND, STATES, read_table
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def test_the_table_names_every_type():
    table = read_table()
    new = sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys() - table.rows.keys())
    if table.version == transformers.__version__:
        assert not new, MEND
        assert table.rows.keys() == MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys(), MEND
    elif new:
        warnings.warn(f"not in the table of docs/backbones.md: {', '.join(new)}", stacklevel=1)


def test_every_type_works_or_is_refused_and_at_most_ten_are_not_tried():
    rows = read_table().rows.values()
    assert {row.state for row in rows} <= set(STATES)
    assert sum(row.state == "not tried" for row in rows) <= 10
    for row in rows:
        if row.state == "works":
            assert row.prefixes
            assert row.lora
            assert row.forms
        else:
            assert row.note, row.model_type
    assert sum(row.state == "works" for row in rows) >= 80
