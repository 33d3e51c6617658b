"""Keys in both spellings: camelCase or snake_case in, the references' camelCase out; unknown ones are reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args, get_origin

from pydantic.alias_generators import to_snake

from spark_jobs.contracts.config import registry
from spark_jobs.contracts.config.problems import Location, Problem, any_of, fold, json_path, nearest, quoted, shown
from spark_jobs.contracts.config.secret_values import is_secret_key
from spark_jobs.contracts.config.section import Section

REFUSED = object()
"""Stands for an object of unknown type, which has been noted; a null in the file is another matter."""


@dataclass(frozen=True)
class Key:
    """What a JSON key of a model stands for."""

    name: str
    """The key that ``to_json`` writes."""
    section: type[Section] | None
    """The model of the object, or of the list's objects, that stands there."""
    many: bool
    """Whether a list of such objects stands there."""


@cache
def keys_of(model: type[Section]) -> dict[str, Key]:
    """Return all accepted spellings of a model's keys."""
    result: dict[str, Key] = {}
    for name, info in model.model_fields.items():
        alias = info.alias or name
        key = Key(alias, _section_in(info.annotation), many=get_origin(info.annotation) is tuple)
        result |= {alias: key, to_snake(alias): key}
    for other, alias in model.also_spelled.items():
        result |= {other: result[alias], to_snake(other): result[alias]}
    return result


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


@dataclass
class Document:
    """A document on its way to the models: collects problems, and how the file spelled each key."""

    problems: list[Problem] = field(default_factory=list)
    spelling: dict[Location, str] = field(default_factory=dict)

    def path(self, location: Location) -> str:
        """Return the JSON path with the keys as the file spells them."""
        return json_path(tuple(self.spelling.get(location[: i + 1], part) for i, part in enumerate(location)))

    def note(self, location: Location, found: str, expected: str, hint: str = "") -> None:
        """Add a problem."""
        self.problems.append(Problem(self.path(location), found, expected, hint))

    def normalise(self, value: Any, model: type[Section], location: Location = ()) -> Any:
        """Return the object with the keys that its model has; what is no object is left for the model to refuse."""
        if not isinstance(value, dict):
            return value
        actual = model.model_for(value)
        if actual is None:
            self._note_unknown_type(value, location)
            return REFUSED
        keys, result = keys_of(actual), dict[str, Any]()
        for given, item in value.items():
            key = keys.get(given)
            if key is None:
                self._note_unknown_key(given, keys, location)
            elif key.name in result:
                other = self.spelling.get((*location, key.name), key.name)
                found = f"both {quoted(other)} and {quoted(given)}"
                self.note((*location, given), found, "one of them: they mean the same")
            else:
                inner = (*location, key.name)
                if given != key.name:
                    self.spelling[inner] = given
                result[key.name] = self._normalised(item, key, inner)
        return result

    def _normalised(self, value: Any, key: Key, location: Location) -> Any:
        if key.section is None or isinstance(value, list) is not key.many:
            return value
        if key.many:
            return [self.normalise(item, key.section, (*location, i)) for i, item in enumerate(value)]
        return self.normalise(value, key.section, location)

    def _note_unknown_key(self, given: str, keys: Mapping[str, Key], location: Location) -> None:
        names = list(dict.fromkeys(key.name for key in keys.values()))
        hint = nearest(given, names)
        if is_secret_key(given):
            hint = "secrets come from credentialId, never from the file"
        elif not hint and {"connectionParams", "parameters"} & set(names):
            inside = "connectionParams" if "connectionParams" in names else "parameters"
            hint = f"options go into {inside}"
        self.note((*location, given), f"the unknown key {quoted(given)}", any_of(names), hint)

    def _note_unknown_type(self, value: Mapping[str, Any], location: Location) -> None:
        names = registry.usable_transform_names()
        name = value.get("transformType", value.get("transform_type"))
        given = "transform_type" if "transform_type" in value and "transformType" not in value else "transformType"
        inner = (*location, given)
        if name is None:
            others = [key for key in value if fold(key) in ("type", "transform", "name")]
            self.note(inner, "nothing", any_of(names), f'"{others[0]}" is spelled transformType' if others else "")
        elif isinstance(name, str):
            self.note(
                inner, f"the unknown transform {quoted(name)}", any_of(names), nearest(name, registry.transform_names())
            )
        else:
            self.note(inner, shown(name), any_of(names))
