"""Choice fields: what there is to choose is said before a run, on the node itself, also where the host would not.

The host drops a list that reveals fields (DynamicCombo) from a node's inputs when its value is none of the list's, and
then calls the node without it; of lists beyond 20 entries it says only how many there are. A node that has such a field
accepts all inputs, so that the value gets this far, and checks it in ``validate_inputs``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from inspect import signature
from typing import Any

from comfy_api.latest import io

from .adapters.host_server import host_server
from .adapters.shown.said import said

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

    The host repeats an answer for each field of the prompt that the method takes; :func:`only_what_is_wrong` has left
    it one. Where there is no server to do so, and for a field that is missing, the answer names the field.
    """
    entries: dict[str, Any] = {entry.id: entry for entry in node.define_schema().inputs}
    found = {field: reason for field, value in values.items() if (reason := refusal(entries[field], value)) is not None}
    given = [field for field in found if values[field] is not MISSING]
    if given:
        alone = sum(value is not MISSING for value in values.values()) == 1
        return said(found[given[0]] if alone else f"{given[0]}: {found[given[0]]}")
    for field, reason in found.items():
        raise ValueError(said(f"{field}: {reason}"))
    return True


class OneMarked(dict[str, Any]):
    """A node's inputs of which some are passed over by whoever goes through them, and are there for whoever asks."""

    def __init__(self, inputs: Mapping[str, Any], passed_over: Collection[str]) -> None:
        super().__init__(inputs)
        self.passed_over = frozenset(passed_over)

    def __iter__(self) -> Iterator[str]:
        return (name for name in super().__iter__() if name not in self.passed_over)


def only_what_is_wrong(kinds: Mapping[str, type[io.ComfyNode]], posted: Any) -> Any:
    """A prompt as it was posted, in which a node with a wrong choice shows no other field that ``validate_inputs``
    takes: the host goes through the fields to see which answer to write where, and then marks that field, and no other.
    A required one is there all the same when the host asks whether it is missing. Such a prompt is refused, so nothing
    runs with such inputs.

    kinds: our nodes by their class in prompts.
    """
    prompt = posted.get("prompt") if isinstance(posted, Mapping) else None
    for one in prompt.values() if isinstance(prompt, Mapping) else ():
        if isinstance(one, dict) and one.get("class_type") in kinds and isinstance(one.get("inputs"), dict):
            wrong, names = wrong_choice(kinds[one["class_type"]], one["inputs"])
            if wrong is not None:
                one["inputs"] = one_marked(kinds[one["class_type"]], one["inputs"], names - {wrong})
    return posted


def one_marked(kind: type[io.ComfyNode], inputs: Mapping[str, Any], others: Collection[str]) -> OneMarked:
    """Lists that reveal fields are left out: of those that the host finds it asks for the value."""
    dynamic = {entry.id for entry in kind.define_schema().inputs if isinstance(entry, io.DynamicCombo.Input)}
    left = {name: value for name, value in inputs.items() if name not in others or name not in dynamic}
    return OneMarked(left, others)


def wrong_choice(kind: type[io.ComfyNode], inputs: Mapping[str, Any]) -> tuple[str | None, set[str]]:
    """The field that holds it, None without one; and all fields that ``validate_inputs`` takes."""
    validate: Callable[..., bool | str] = getattr(kind, "validate_inputs")  # noqa: B009 - of the host's base class
    names = [name for name in signature(validate).parameters if name in inputs]
    values = {name: None if isinstance(inputs[name], list) else inputs[name] for name in names}  # as the host has links
    with suppress(ValueError):  # a field is missing, which is said when the host asks
        if len(names) > 1 and validate(**values) is not True:
            entries: dict[str, Any] = {entry.id: entry for entry in kind.define_schema().inputs}
            choices = [name for name in names if isinstance(entries[name], io.Combo.Input | io.DynamicCombo.Input)]
            wrong = (name for name in choices if refusal(entries[name], values[name]) is not None)
            return next(wrong, None), set(names)
    return None, set(names)


def register(kinds: Mapping[str, type[io.ComfyNode]]) -> None:
    """Have the host show every prompt before it checks it; nothing where there is no server, as in a script."""
    server = host_server()
    if server is not None:
        server.add_on_prompt_handler(partial(only_what_is_wrong, kinds))
