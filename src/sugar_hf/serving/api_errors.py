"""Errors in the form of the OpenAI API: what is wrong, and in which field. Never a stack."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(HTTPException):
    """An answer that is an error.

    Args:
        status: The HTTP status.
        message: What is wrong and what to do, in words.
        param: The field at fault, such as `messages[0].content[1]`.
        code: A word for programs, such as `context_length_exceeded`.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = _TYPES.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        """The response."""
        # ASCII, as a message may quote half a surrogate pair
        return Response(json.dumps(self.body), self.status_code, self.headers, "application/json")


def invalid(message: str, param: str | None, code: str | None = None) -> ApiError:
    """Make the error of a request that cannot be served as it is."""
    return ApiError(400, message, param, code)


def of_validation(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """Make one error of those that pydantic found: the one that lies deepest in the request.

    Of a value that may have several forms, the errors of all forms come; the form that was meant got furthest.

    Args:
        errors: Those of a `RequestValidationError`.
        body: The request, read from JSON.
    """
    found = [(*_place(error, body), error) for error in errors if error["loc"][0] == "body"]
    if not found:  # in the query of the address, or no JSON at all
        error = errors[0]
        return invalid(f"{error['msg']}.", ".".join(map(str, error["loc"][1:])) or None)
    depth, param, error = max(found, key=lambda row: row[0])
    if error["type"] == "json_invalid":
        return invalid(f"the body is no JSON: {error['ctx']['error']}.", None, "invalid_json")
    if error["type"] == "extra_forbidden":
        return invalid(f"{param}: this server does not know it. Leave it out.", param, "unsupported_parameter")
    if error["type"] == "missing":
        return invalid(f"{param}: it is missing.", param, "missing_required_parameter")
    others = dict.fromkeys(row["msg"] for at, where, row in found if (at, where) == (depth, param))
    return invalid(f"{param or 'the body'}: {'; or: '.join(others)}.", param or None)


def _place(error: Mapping[str, Any], body: Any) -> tuple[int, str]:
    """How deep in a request an error lies, and its place in words, without the names of the forms that were tried."""
    depth, place, value = 0, "", body
    for step in error["loc"][1:]:
        if isinstance(step, int) and isinstance(value, list):
            value, place = (value[step] if step < len(value) else None), f"{place}[{step}]"
        elif isinstance(step, str) and isinstance(value, dict) and (step in value or error["type"] == "missing"):
            value, place = value.get(step), f"{place}.{step}".lstrip(".")
        else:
            continue  # the name of a form
        depth += 1
    return depth, place
