"""A prompt as the frontend sends it, read without running anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 1000  # nodes in a row; a longer chain goes in a circle


class NotKnownError(Exception):
    """Only the run will tell; the message says what is missing."""


@dataclass(frozen=True)
class Graph:
    """nodes: id -> ``{"class_type": ..., "inputs": {...}}``, where an input is a value or ``[id, output]``."""

    nodes: Mapping[str, Any]

    @classmethod
    def of(cls, prompt: Any) -> Graph:
        """Leaves out what is no node, whoever sent it."""
        found = prompt if isinstance(prompt, Mapping) else {}
        usable = {
            str(key): node
            for key, node in found.items()
            if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)
        }
        return cls(usable)

    def of_kind(self, *kinds: str) -> list[str]:
        return [key for key in self.nodes if self.kind(key) in kinds]

    def kind(self, node: str) -> str:
        return str(self.nodes[node].get("class_type"))

    def source(self, node: str, name: str) -> str | None:
        """The node that an input is linked to; None for a value, or nothing."""
        value = self.nodes[node]["inputs"].get(name)
        return str(value[0]) if _is_link(value) and str(value[0]) in self.nodes else None

    def needed(self, node: str, name: str) -> str:
        """:meth:`source`, which must be there."""
        found = self.source(node, name)
        if found is None:
            raise NotKnownError(f"nothing is connected to {name}")
        return found

    def value(self, node: str, name: str, default: Any = None) -> Any:
        """An input's value, through the host's nodes that hold one. NotKnownError where something computes it."""
        value = self.nodes[node]["inputs"].get(name, default)
        if not _is_link(value):
            return value
        source = str(value[0])
        if source in self.nodes and self.kind(source).startswith("Primitive") and name != "value":
            return self.value(source, "value")
        raise NotKnownError(f"{name} is computed by the graph")

    def count(self, node: str, name: str) -> int:
        """A whole number of at least 1."""
        value = self.value(node, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise NotKnownError(f"{name} is {value!r:.40}")
        return value

    def fields(self, node: str, name: str) -> dict[str, Any]:
        """A choice that reveals fields, as nodes are handed it: ``{name: chosen, its fields ...}``, links left out."""
        found: dict[str, Any] = {name: self.value(node, name)}
        for key in self.nodes[node]["inputs"]:
            if key.startswith(f"{name}."):
                value = self.value(node, key)
                found[key.rpartition(".")[2]] = value
        return found

    def upstream(self, node: str, name: str) -> Iterator[str]:
        """The nodes that an input comes through, nearest first, along inputs of the same name."""
        here = self.source(node, name)
        for _ in range(LONGEST):
            if here is None:
                return
            yield here
            here = self.source(here, name)


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
