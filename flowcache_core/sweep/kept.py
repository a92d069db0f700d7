"""What has been measured so far, in a file: a second call goes on where the first stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..files import write_json
from ..reading.json_text import read_object


@dataclass
class Kept:
    """What has been measured so far, by name, in a file; of a file about something else nothing is taken.

    about: what it is measured with. told: gets a line whenever something new was measured.
    """

    path: Path
    about: dict[str, Any]
    told: Callable[[str], None] = lambda line: None
    values: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        try:
            content = read_object(self.path, "measurements", "a JSON file")
        except SettingError:
            return  # none yet, or nothing that can be gone on with
        if content.get("about") == self.about and isinstance(content.get("values"), dict):
            self.values = content["values"]

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value of that name, measured and kept if it is not known."""
        if name not in self.values:
            self.put(name, measure())
        return self.values[name]

    def put(self, name: str, value: Any) -> None:
        self.values[name] = value
        write_json(self.path, {"about": self.about, "values": self.values})
        self.told(name)
