"""What enqueue checks of a payload, reduced from its JSON schema."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

#: JSON types, as jsonb_typeof names them, that a JSON schema's type stands for.
_JSON_TYPES = {"integer": "number"}


def checked_fields(schema: dict[str, Any], payload_type: Any) -> dict[str, Any]:
    """Reduce a JSON schema to what enqueue checks: top-level fields, their JSON types, and whether they are required.

    Only what is certain is checked; a field that pydantic would also take under another name is not required here.
    """
    required = set(schema.get("required", ()))
    if isinstance(payload_type, type) and issubclass(payload_type, BaseModel):
        config = payload_type.model_config
        if config.get("populate_by_name") or config.get("validate_by_name"):
            required -= {info.alias for info in payload_type.model_fields.values() if info.alias}
        required -= {
            name
            for name, info in payload_type.model_fields.items()
            if not isinstance(info.validation_alias, str | None)
        }
    return {
        name: {"types": types, "required": name in required} if types else {"required": name in required}
        for name, part in schema.get("properties", {}).items()
        for types in [_types(part, schema.get("$defs", {}))]
    }


def _types(part: dict[str, Any], defs: dict[str, Any]) -> list[str] | None:
    """Give the JSON types that a part of a schema allows, or None if any may come."""
    if "$ref" in part:
        return _types(defs.get(part["$ref"].rpartition("/")[2], {}), defs)
    if "anyOf" in part:
        branches = [_types(branch, defs) for branch in part["anyOf"]]
        return None if None in branches else sorted({name for branch in branches for name in branch or ()})
    if "type" not in part:
        return None
    return [_JSON_TYPES.get(part["type"], part["type"])] if isinstance(part["type"], str) else None
