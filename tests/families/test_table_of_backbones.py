"""The table in docs/backbones.md is what the tests beside this file give. It runs after them."""

from backbone_table import DOCUMENT, OUTCOMES, cells, parse, render, replace
from builders import BUILDERS


def test_the_table_in_the_documentation_is_what_came_out(request):
    found = cells(request.config.stash.get(OUTCOMES, {}))
    if request.config.getoption("--update-backbones"):
        DOCUMENT.write_text(replace(DOCUMENT.read_text(encoding="utf-8"), render(found)), encoding="utf-8")
    written = parse(DOCUMENT.read_text(encoding="utf-8"))
    mend = "write it anew: python -m pytest tests/families --update-backbones"
    assert found.items() <= written.items(), mend  # a run may be of some tests only
    assert {name for name, _ in written} == set(BUILDERS), mend
