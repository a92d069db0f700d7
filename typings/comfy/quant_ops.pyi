from typing import Any

QUANT_ALGOS: dict[str, dict[str, Any]]

def get_layout_class(name: str) -> Any: ...
