"""What all wire formats share: strict bodies, fields that are allowed to say nothing new, and JSON going out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from starlette.responses import Response


class Json(Response):
    """JSON. Half of a surrogate pair, which a request may hold, goes back as the escape it came as."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_bytes(content)


def to_bytes(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


# One red pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


def shown_by(*examples: dict[str, Any]) -> ConfigDict:
    """Of a body: what the schema shows."""
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class Wire(BaseModel):
    """Part of a body. Null is as good as nothing; what is not listed is an error, never ignored.

    Attributes:
        neutral: fields that are not supported → values that ask for nothing, which clients send by themselves.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def leave_out(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if not cls.says_nothing(name, value)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> Any:
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, field in schema.get("properties", {}).items():
            if name not in schema.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                told = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
                schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **told}
        return schema

    @classmethod
    def says_nothing(cls, name: str, value: Any) -> bool:
        if name in cls.model_fields:
            return value is None
        allowed = cls.neutral.get(name)
        return allowed is not None and (
            value is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)
        )
