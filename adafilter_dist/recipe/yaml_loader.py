"""YAML as recipes mean it: safe, and ``4:00:00`` is a time, not YAML 1.1's number to base 60."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """SafeLoader to which a number with a colon in it is a text."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        if kind is yaml.ScalarNode and tag in _NUMBERS and ":" in value:
            return "tag:yaml.org,2002:str"
        return tag


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_yaml(text: str) -> Any:
    """The content of a YAML text; yaml.YAMLError where it is none."""
    return yaml.load(text, Loader=_Loader)
