"""Collects what the tests say about each family, for the table of docs/backbones.md."""

import pytest
from backbone_table import OUTCOMES


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    marker = item.get_closest_marker("column")
    if marker is not None and (report.when == "call" or report.failed):
        outcomes = item.config.stash.setdefault(OUTCOMES, {})
        cell = outcomes.setdefault((item.callspec.params["family"], marker.args[0]), [])
        cell.append(dict(report.user_properties).get("cell", "yes") if report.passed else "no")
    return report
