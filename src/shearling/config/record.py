"""A config as it is written down: as YAML that reads back equal, and as a hash of what affects results."""

import hashlib
import json
from typing import Any

from shearling.config.spec import HARMLESS, Spec
from shearling.config.tree import Keys, dotted, leaves


def flatten(value: Spec) -> dict[Keys, Any]:
    """Every value of a config as plain data, by place, in the schema's order."""
    return dict(leaves(value.model_dump(mode="json")))


def fingerprint(value: Spec) -> str:
    """SHA-256, in hexadecimal, of all that affects results: canonical JSON without the fields marked as HARMLESS.

    Equal for configs that differ only in where they write, what they log, or in which file an option stood.
    """
    text = json.dumps(_that_matters(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(a: Spec, b: Spec) -> list[str]:
    """Dotted keys in which two configs of one schema differ, of those that affect results."""
    ours, theirs = dict(leaves(_that_matters(a))), dict(leaves(_that_matters(b)))
    return [dotted(keys) for keys in {**ours, **theirs} if ours.get(keys) != theirs.get(keys)]


def dump(value: Spec) -> str:
    """YAML of the whole config, headed by its fingerprint; :func:`shearling.config.load` reads it back equal."""
    from omegaconf import OmegaConf

    # OmegaConf's writer quotes whatever its reader would take for a number, as in `name: 1e3`.
    return f"# fingerprint: {fingerprint(value)}\n" + OmegaConf.to_yaml(OmegaConf.create(value.model_dump(mode="json")))


def _that_matters(value: Any) -> Any:
    if not isinstance(value, Spec):
        return value
    fields = type(value).model_fields
    return {
        key: _that_matters(part) if isinstance(part := getattr(value, key), Spec) else plain
        for key, plain in value.model_dump(mode="json").items()
        if key not in fields or fields[key].json_schema_extra != HARMLESS
    }
