"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from collections.abc import Sequence
from typing import Any

class Input:
    id: str
    optional: bool
    tooltip: str | None
    def __getattr__(self, name: str) -> Any: ...

class Output:
    def __init__(self, id: str | None = ..., display_name: str | None = ..., tooltip: str | None = ...) -> None: ...

class _Kind:
    class Input(Input):
        def __init__(self, id: str, *args: Any, **kwargs: Any) -> None: ...

    class Output(Output): ...

class Model(_Kind): ...
class Vae(_Kind): ...
class Clip(_Kind): ...
class Latent(_Kind): ...
class Image(_Kind): ...
class Conditioning(_Kind): ...
class Sampler(_Kind): ...
class Sigmas(_Kind): ...
class Boolean(_Kind): ...
class Int(_Kind): ...
class Float(_Kind): ...
class String(_Kind): ...

class NumberDisplay:
    slider: Any

def Custom(io_type: str) -> type[_Kind]: ...

class ImageCompare(_Kind): ...

class MultiType:
    class Input(Input):
        def __init__(self, id: str, types: Sequence[type[_Kind]], **kwargs: Any) -> None: ...

class Combo(_Kind):
    class Input(_Kind.Input):
        options: list[str]

class DynamicCombo(_Kind):
    class Option:
        key: str
        inputs: list[Input]
        def __init__(self, key: str, inputs: Sequence[Input]) -> None: ...

    class Input(_Kind.Input):
        options: list[DynamicCombo.Option]

class Hidden:
    unique_id: Any
    prompt: Any
    extra_pnginfo: Any
    dynprompt: Any

class Schema:
    node_id: str
    display_name: str | None
    inputs: list[Input]
    outputs: list[Output]
    def __init__(self, node_id: str, *args: Any, **kwargs: Any) -> None: ...

class NodeOutput:
    args: tuple[Any, ...]
    def __init__(self, *args: Any, ui: Any = ..., expand: Any = ..., block_execution: str | None = ...) -> None: ...

class ComfyNode:
    hidden: Any
    @classmethod
    def define_schema(cls) -> Schema: ...
    @classmethod
    def GET_SCHEMA(cls) -> Schema: ...
