"""What went wrong, in the shapes that clients read: OpenAI's, and Anthropic's around it for who asks in theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import (
    BusyError,
    ConfigError,
    ContextLengthError,
    EngineError,
    ImageError,
    MissingDependencyError,
    PromptError,
    VisGLMError,
    printable,
)

INVALID, SERVER = "invalid_request_error", "server_error"
# Status → type of OpenAI, type of Anthropic. Others are as 400 or 500.
TYPES: Mapping[int, tuple[str, str]] = {
    400: (INVALID, INVALID),
    401: (INVALID, "authentication_error"),
    403: (INVALID, "permission_error"),
    404: (INVALID, "not_found_error"),
    413: (INVALID, "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: (SERVER, "api_error"),
    503: (SERVER, "overloaded_error"),
}
# The library's word for a setting → that of a request.
PARAMS = {"max_new_tokens": "max_tokens", "json_schema": "response_format", "regex": "response_format",
          "logprobs": "top_logprobs"}  # fmt: skip
FAILED = "The model failed while it answered. Ask again."


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP. message: for people; nothing of what was sent is in it that could be a secret.
        code: for programs. param: the field that is wrong.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self, is_anthropic: bool = False) -> dict[str, Any]:
        """As JSON."""
        own, theirs = TYPES.get(self.status, TYPES[500 if self.status >= 500 else 400])
        error = {"message": self.message, "type": own, "param": self.param, "code": self.code}
        return {"type": "error", "error": error | {"type": theirs}} if is_anthropic else {"error": error}


def broken_off() -> Refusal:
    """An answer that the end of the server ends."""
    return Refusal(503, "The answer was broken off: the server ends.", "shutting_down")


# What went wrong → status, code and field; the first that fits. What happens inside is told in a fixed sentence.
KINDS: Sequence[tuple[type[Exception], int, str | None, str | None]] = (
    (ImageError, 400, "invalid_image", "messages"),
    (ContextLengthError, 400, "context_length_exceeded", "messages"),
    (PromptError, 400, None, "messages"),
    (MissingDependencyError, 501, "not_installed", None),
    (ConfigError, 400, "invalid_value", None),
)


def refusal_of(error: BaseException) -> Refusal:
    """An error of the library, or any other, as it is told."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BusyError):
        return Refusal(503, "The model is busy with something long. Ask again later.", "busy",
                       headers={"Retry-After": "30"})  # fmt: skip
    if isinstance(error, VisGLMError) and not isinstance(error, EngineError):
        for kind, status, code, param in KINDS:
            if isinstance(error, kind):
                message = in_words_of_requests(str(error))
                return Refusal(status, message, code, param or param_of(message))
    return Refusal(500, FAILED, "model_failed")


def in_words_of_requests(message: str) -> str:
    """An error of the library speaks of its own settings."""
    message = re.sub(r" (Pass|Or pass) allow_urls=True.*", "", message)
    names = "|".join(PARAMS)
    return printable(re.sub(rf"\b({names})\b(?=[ \[])", lambda match: PARAMS[match[1]], message))


def param_of(message: str) -> str | None:
    """The setting that a message begins with."""
    found = re.match(r"(?:a (?:token|text) of )?([a-z_]+)[ \[]", message)
    known = {"temperature", "top_p", "top_k", "seed", "n", "stop", "logit_bias", "choices", "repetition_penalty"}
    return found[1] if found and found[1] in {*known, *PARAMS.values()} else None


def refusal_of_body(problems: Sequence[Mapping[str, Any]], body: Any) -> Refusal:
    """What pydantic found wrong with a body, the first thing first; unknown fields all at once."""
    if unknown := [place_of(one, body) for one in problems if one["type"] == "extra_forbidden"]:
        names = ", ".join(unknown[:5])
        return Refusal(
            400, f"{names}: not supported here, or not with this value. Leave it out.", "unsupported_field", unknown[0]
        )
    # Of a union, the kind that was meant: it is the one whose type is right, if any is.
    one = max(problems, key=lambda one: (steps_in(place_of(one, body)), not str(one["type"]).endswith("_type")))
    place = place_of(one, body)
    if not place or not isinstance(body, dict):
        return Refusal(400, "The body must be a JSON object, sent as application/json.", "invalid_json")
    if one["type"] == "missing":
        return Refusal(400, f"{place} is missing.", "missing_field", place)
    message = str(one["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return Refusal(400, f"{place}: {printable(message)[:300]}.".replace("..", "."), "invalid_value", place)


def steps_in(place: str) -> int:
    return place.count(".") + place.count("[") + bool(place)


def place_of(problem: Mapping[str, Any], body: Any) -> str:
    """Such as `messages[0].content`: of where pydantic looked only what is in the body, not the kinds it tried."""
    place, here, told = "", body, None
    steps = [step for step in problem["loc"] if step != "body"]
    for number, step in enumerate(steps):
        is_last = number == len(steps) - 1
        is_missing = problem["type"] == "missing" and is_last
        if isinstance(here, dict) and here is not told and not is_last and step in (here.get("type"), here.get("role")):
            told = here  # its kind, which may be called as one of its fields is
        elif isinstance(here, dict) and isinstance(step, str) and (step in here or is_missing):
            here = here.get(step)
            shown = printable(step if len(step) <= 60 else f"{step[:59]}…")
            place += f".{shown}" if place else shown
        elif isinstance(here, list) and isinstance(step, int) and 0 <= step < len(here):
            here = here[step]
            place += f"[{step}]"
    return place
