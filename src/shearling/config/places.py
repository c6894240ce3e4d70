"""Questions to a schema: what may stand at a place, and which name was probably meant."""

import difflib
import functools
import types
import typing
from collections.abc import Iterable
from typing import Any

from shearling.config.spec import Spec, kinds, tag
from shearling.config.tree import Keys, dotted

Options = tuple[type[Spec], ...]
"""The specs that may stand at a place: none for a scalar or a list, one for a map, several for a choice of kinds."""


def options_at(spec: type[Spec] | None, key: str) -> Options:
    """The specs that may stand at a key of a map; none where the key is unknown."""
    field = spec.model_fields.get(key) if spec else None
    return _specs(field.annotation) if field else ()


def choose(options: Options, kind: Any) -> type[Spec] | None:
    """The one of the options that a map's `kind` picks; the only one needs no kind to be picked."""
    if len(options) == 1:
        return options[0]
    return next((spec for spec in options if tag(kind) in kinds(spec)), None)


@functools.lru_cache
def places(schema: type[Spec]) -> tuple[dict[Keys, None], dict[Keys, None]]:
    """All values and all maps that a schema knows, those of every kind included; sets that keep the schema's order."""
    found_values: dict[Keys, None] = {}
    found_maps: dict[Keys, None] = {}
    for key in schema.model_fields:
        options = options_at(schema, key)
        (found_maps if options else found_values)[(key,)] = None
        for option in options:
            inner_values, inner_maps = places(option)
            found_values.update({(key, *keys): None for keys in inner_values})
            found_maps.update({(key, *keys): None for keys in inner_maps})
    return found_values, found_maps


def ending_in(schema: type[Spec], ending: Keys) -> list[Keys]:
    """The places that a name may mean: itself if it is whole, else the values, else the maps, whose names end so.

    A section that a config need not have (its default is null) gives way to what every config has.
    """
    found_values, found_maps = places(schema)
    if ending in found_values or ending in found_maps:
        return [ending]
    fields = schema.model_fields.items()
    optional = {key for key, field in fields if field.default is None and options_at(schema, key)}

    def ends(candidates: Iterable[Keys], giving_way: bool) -> list[Keys]:
        return [keys for keys in candidates if keys[-len(ending) :] == ending and (keys[0] in optional) == giving_way]

    groups = (ends(found, giving_way) for giving_way in (False, True) for found in (found_values, found_maps))
    return next((found for found in groups if found), [])


def mend(schema: type[Spec], keys: Keys, options: Options, chosen: type[Spec] | None) -> str:
    """What to write instead of an unknown key: the same name where it belongs, else the nearest name.

    `options` are the specs that may stand at the map that holds the key, `chosen` the one that does.
    """
    *_, name = keys
    name = name.replace("-", "_")
    if "." in name:
        return "a dot is no part of a name: write maps one in another"
    here = list(dict.fromkeys(key for spec in ((chosen,) if chosen else options) for key in spec.model_fields))
    owners = [str(kind) for spec in options if name in spec.model_fields for kind in kinds(spec)]
    if owners and len(options) > 1:
        return f"it is an option of kind {' and '.join(owners)}"
    if elsewhere := ending_in(schema, (name,)):
        return f"did you mean {' or '.join(map(dotted, elsewhere))}?"
    if near := nearest(name, here):
        return f"did you mean {dotted((*keys[:-1], near))}?"
    everywhere = {place[-1]: dotted(place) for found in places(schema) for place in reversed(found)}
    if near := nearest(name, everywhere, cutoff=0.75):
        return f"did you mean {everywhere[near]}?"
    return f"{dotted(keys[:-1]) or 'the config'} takes {', '.join(here)}" if here else "leave it out"


def nearest(name: str, names: Iterable[Any], cutoff: float = 0.6) -> str | None:
    """The name that is most like a misspelt one or has it for initials (`lr`), or None where none is near."""
    known = [str(each) for each in names]
    spelt_out = [each for each in known if "_" in each and name == "".join(word[:1] for word in each.split("_"))]
    return next(iter(spelt_out or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def _specs(annotation: Any) -> Options:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return (annotation,)
    if typing.get_origin(annotation) is typing.Annotated:
        return _specs(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(spec for member in typing.get_args(annotation) for spec in _specs(member))
    return ()
