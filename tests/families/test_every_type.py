"""Every type that transformers maps to image-text-to-text works, is refused by name, or is not tried for a reason."""

from dataclasses import replace

import pytest
import transformers
from backbone_table import MEND, read_table, write_row
from shrinker import TYPES
from type_steps import NEEDS_TORCHVISION, try_type

pytestmark = [pytest.mark.slow, pytest.mark.families, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("model_type", TYPES)
def test_type(model_type, tmp_path, request):
    table = read_table()
    same_version = table.version == transformers.__version__ or request.config.getoption("--update-backbones")
    if model_type not in table.rows and not same_version:
        pytest.xfail(f"{model_type} is new in transformers {transformers.__version__}: not in the table as yet")
    row, failures = try_type(model_type, tmp_path)
    assert not failures, "\n".join([model_type, *(f"{step}: {error}" for step, error in failures.items())])
    if row.forms == NEEDS_TORCHVISION and model_type in table.rows:  # said by whoever had it
        row = replace(row, forms=table.rows[model_type].forms)
    if request.config.getoption("--update-backbones"):
        write_row(row)
    written = read_table().rows[model_type]
    if same_version:
        assert row == written, MEND
    else:  # another version may reach other layers, or its own model may fail there or here; the rest stays so
        fails_here = "its forward pass fails" in written.note
        assert row.state in (written.state, "not tried", "works" if fails_here else written.state), row.note
