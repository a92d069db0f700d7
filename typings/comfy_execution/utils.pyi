"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

class ExecutionContext:
    prompt_id: str
    node_id: str

def get_executing_context() -> ExecutionContext | None: ...
