"""Choice fields: what there is to choose is said before a run, on the node itself, also where the host would not.

The host drops a list that reveals fields (DynamicCombo) from a node's inputs when its value is none of the list's, and
then calls the node without it; of lists beyond 20 entries it says only how many there are. A node that has such a field
accepts all inputs, so that the value gets this far, and checks it in ``validate_inputs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

MISSING = object()
"""What ``validate_inputs`` gets for a field that the prompt does not have."""


def refusal(entry: io.Combo.Input | io.DynamicCombo.Input, value: Any) -> str | None:
    """Why ``value`` cannot be chosen, with everything that can; None when it can."""
    dynamic = isinstance(entry, io.DynamicCombo.Input)
    if dynamic and isinstance(value, Mapping):  # with its fields, as the host nests them
        value = value.get(entry.id)
    choices = [option if isinstance(option, str) else option.key for option in entry.options]
    if (value is MISSING or value is None) and not dynamic:  # the host refuses it, or a link will bring it
        return None
    if isinstance(value, str) and value in choices:
        return None
    # Without quotes, which the frontend's list of errors shows as their escapes.
    got = "nothing" if value is MISSING or value == "" else "a link, or nothing" if value is None else value
    return f"got {got}, accepted: {', '.join(choices) or 'nothing: there is no file to choose'}"


def check(node: type[io.ComfyNode], **values: Any) -> bool | str:
    """For ``validate_inputs``: True, or what the host shall write behind the field's name.

    The host repeats an answer for each field that the method takes. So the answer is given for a single field only;
    where there are several, and for a field that is missing, it is an error that names the field.
    """
    entries: dict[str, Any] = {entry.id: entry for entry in node.define_schema().inputs}
    for field, value in values.items():
        reason = refusal(entries[field], value)
        if reason is not None and (value is MISSING or len(values) > 1):
            raise ValueError(f"{field}: {reason}")
        if reason is not None:
            return reason
    return True
