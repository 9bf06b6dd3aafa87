"""What the server does is what its OpenAPI document says, whatever is sent."""

from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
ROUTES = {
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/search",
    "/v1/answer",
    "/v1/explain",
    "/v1/images",
    "/v1/models",
    "/health",
    "/ready",
}


def test_the_document_names_all_routes(served):
    assert set(served.http.get("/openapi.json").json()["paths"]) == ROUTES


def test_a_page_shows_it(served):
    page = served.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for route in ROUTES:
        assert f" {route}</code>" in page.text
    for field in ("encoding_format", "stream_options", "min_score", "include_usage", "relevance_score"):
        assert f"<code>{field}</code>" in page.text
    assert "<script" not in page.text


@pytest.mark.parametrize("examples", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_whatever_is_sent_gets_what_the_document_says(served, examples, subtests):
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:

            @seed(1)
            @given(case=operation.as_strategy(mode))
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def send(case):
                case.call_and_validate(checks=CHECKS)

            with subtests.test(path=operation.path, mode=mode), suppress(Unsatisfiable):  # a GET without parameters
                send()
