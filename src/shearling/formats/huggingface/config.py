"""`config.json` to our specification, and back."""

from shearling.config import differences, flatten
from shearling.errors import UserError
from shearling.formats.huggingface.families import FAMILIES, REFUSED_OF_ALL, SEGMENTS, Family
from shearling.formats.huggingface.options import Options, nested
from shearling.formats.huggingface.rope import rope_options
from shearling.formats.specification import shown, specification
from shearling.models.placement_spec import LNSGainSpec, PreSpec
from shearling.models.spec import ModelSpec, RoPESpec


def family_of(config: Options, origin: str) -> Family:
    """What a config's model_type is called by.

    Raises:
        UserError: it is none that is read here.
    """
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UserError(f"{origin}: model_type: {repr(kind)[:60]} is none that is read here: {', '.join(FAMILIES)}")
    return family


def spec_of(family: Family, config: Options, head: bool, origin: str) -> ModelSpec:
    """The architecture that a config describes, after `family.flatten` and with `family.defaults`.

    Args:
        head: whether the model has one.
        origin: the file, for messages.

    Raises:
        UserError: an option is missing or wrong, or our graph cannot express it.
    """
    for key, (allowed, reason) in {**REFUSED_OF_ALL, **family.refused}.items():
        if key in config and key not in family.options and config[key] not in allowed:
            raise UserError(f"{origin}: {key}: {shown(config[key])} cannot be expressed: {reason}")
    options = family.options_of(config)
    if missing := [key for key in options if key not in config]:
        raise UserError(f"{origin}: {', '.join(missing)}: missing: fetch the model's own config.json")
    flat: Options = {**family.fixed, "head": head}
    if any(ours.startswith("position.scaling.") for ours in options.values()):
        flat["position.scaling.kind"] = config["rope_type"]
    for theirs, ours in options.items():
        value = config[theirs]
        if theirs in family.values:
            names = family.values[theirs]
            if not (isinstance(value, str) and value in names):
                raise UserError(f"{origin}: {theirs}: {shown(value)} is none that is read here: {', '.join(names)}")
            value = names[value]
        if ours in flat and flat[ours] != value:
            raise UserError(f"{origin}: {theirs}: {shown(value)}: it is {flat[ours]} elsewhere in the model, and here "
                            f"one option (model.{ours}) serves both: make them equal")  # fmt: skip
        flat[ours] = value
    if not head:
        flat["tie_embeddings"] = True
    words = {ours: theirs for theirs, ours in reversed(options.items())}  # of several keys for one option the first
    spec = specification(nested(flat), words, origin)
    if config.get("head_dim") not in (None, spec.head_dim):
        raise UserError(f"{origin}: head_dim: {shown(config['head_dim'])} cannot be expressed: all heads together are "
                        f"as wide as the model here, {spec.head_dim} each")  # fmt: skip
    return spec


def config_of(spec: ModelSpec, origin: str) -> tuple[Family, Options]:
    """The family whose graph a model has, and the config.json that says so.

    How weights were drawn, and dropout that the family does not have, are left out: they change no logits.

    Args:
        origin: the model, for messages.

    Raises:
        UserError: no model_type here has this graph.
    """
    if spec.arch == "llama" and (beyond := spec.beyond_llama()):
        raise _no_such_model(origin, "llama", beyond)
    kind = "mistral" if spec.arch == "llama" and spec.sliding_window is not None else spec.arch
    family = FAMILIES[kind]
    ours = {".".join(keys): value for keys, value in flatten(spec).items()} | {"n_kv_heads": spec.kv_heads}
    other = [key for key, value in family.fixed.items() if key not in OF_TRAINING and ours.get(key) != value]
    config: Options = {"model_type": kind, "architectures": [family.architecture[0 if spec.head else 1]]}
    for theirs, option in family.options.items():
        value = ours.get(option)
        if theirs in family.values:
            meant = value
            value = next((name for name, known in family.values[theirs].items() if known == meant), None)
            other += [option] if value is None else []
        config[theirs] = value
    if isinstance(spec.position, RoPESpec):
        config |= {"head_dim": spec.head_dim, **rope_options(spec.position)}
    if family.segments:
        config[SEGMENTS] = 1
    if not other:  # what the family has no option for does not read back as it was
        read_back = spec_of(family, family.defaults | family.flatten(config), spec.head, origin)
        other = differences(_graph(spec), _graph(read_back))
    if other:
        raise _no_such_model(origin, kind, other)
    return family, config


OF_TRAINING = {"dropout": 0.0, "attention_dropout": 0.0, "init": "scaled", "init_std": 0.02, "embedding_std": None}
OF_TRAINING |= {"head_std": None}
"""Options that change no logits of a trained model."""


def _graph(spec: ModelSpec) -> ModelSpec:
    """The same with all that changes no logits set to one value."""
    placement = spec.placement.model_copy(update={"residual_warmup": None})
    if isinstance(placement, LNSGainSpec):  # its gains are stored as they are
        placement = PreSpec()
    return spec.model_copy(update={**OF_TRAINING, "n_kv_heads": spec.kv_heads, "placement": placement})


def _no_such_model(origin: str, kind: str, options: list[str]) -> UserError:
    named = ", ".join(f"model.{option}" for option in options)
    return UserError(f"{origin}: {named}: no {kind} model of `transformers` has this: keep it in a run folder")
