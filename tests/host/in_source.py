"""Sentences as the source makes them, with {} for what is put in, read from the syntax: what errors find and accept,
and whatever else is English words in a module that the page can come to.

An expression is followed to where its words stand: a name to what it is given, a call to what its function returns, in
another module too. A parameter that becomes what an error says makes every call of its function one that says it.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Of a call: where its words stand, by place and by name.
ERRORS = {
    "SettingError": {(1, "value"), (2, "accepted")},
    "require": {(2, "value"), (3, "accepted")},
    "Found": {(0, "")},
    "NotKnownError": {(0, "")},
    "NoRecordError": {(0, "")},
    "NotFiniteError": {(0, "")},
}
# What the host translates by itself (declarations), what goes to the log, and what only a fault of ours can raise.
ELSEWHERE = {
    *("option", "Input", "Output", "Schema"),
    *("debug", "info", "warning", "error"),
    *("NotImplementedError", "KeyError"),
}
HOLE = "{}"
DEPTH, MOST = 6, 48  # calls and names between an error and its words; sentences of one expression
LETTERS = 8  # of a sentence that is more than signs between what is put in
WORDS = re.compile(
    r"\b(a|an|and|are|as|at|beside|by|for|from|has|have|in|is|it|its|more|no|not|of|on|one|only|or|than|that|the|there|"
    r"these|they|this|to|was|were|what|where|which|with|without)\b"
)


def speaks(text: str) -> bool:
    """Whether it is words to read, and not a name, a key or signs."""
    own = text.replace(HOLE, "")
    return sum(map(str.isalpha, own)) >= LETTERS and len(own.split()) > 1 and WORDS.search(own) is not None


def is_code(text: str) -> bool:
    try:
        return "\n" in text and bool(ast.parse(text))
    except SyntaxError:
        return False


def values_in(tree: ast.Module) -> Iterator[str]:
    """What a type may be (Literal), and code: words for the machine."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal":
            yield from (one.value for one in ast.walk(node) if isinstance(one, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_code(node.value):
            yield node.value


def is_clause(text: str) -> bool:
    """Whether it stands only within a sentence."""
    return text == "" or text[0] in " ,;.:" or text[-1] == " "


def name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def calls_in(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@dataclass
class Module:
    """functions: by name, methods among them. given: all that a name is given anywhere in the file. brought: name ->
    (module, name there).
    """

    name: str
    path: Path
    functions: dict[str, list[ast.FunctionDef]] = field(default_factory=lambda: defaultdict(list))
    given: dict[str, list[ast.expr]] = field(default_factory=lambda: defaultdict(list))
    brought: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.path.read_text(encoding="utf-8"))
        self.calls = calls_in(self.tree)
        package = self.name.split(".") if self.path.name == "__init__.py" else self.name.split(".")[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                self.functions[node.name].append(node)
                for one, default in zip(reversed(node.args.args), reversed(node.args.defaults)):
                    if isinstance(default, ast.Constant) and default.value == "":  # words that may be added
                        self.given[one.arg].append(default)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._give(target, node.value)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                self._give(node.target, node.value)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                self.brought |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}

    def _give(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple):
            for at, one in enumerate(target.elts):
                for whole in either(value):
                    if isinstance(whole, ast.Tuple) and len(whole.elts) == len(target.elts):
                        self._give(one, whole.elts[at])
        elif isinstance(target, ast.Name):
            self.given[target.id].append(value)


def either(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.IfExp):
        yield from (*either(node.body), *either(node.orelse))
    else:
        yield node


class Source:
    """modules: dotted name -> file."""

    def __init__(self, modules: Mapping[str, Path]) -> None:
        self.modules = {name: Module(name, path) for name, path in modules.items()}
        self.values = {text for module in self.modules.values() for text in values_in(module.tree)}
        self._known: dict[tuple[ast.expr, int], set[str]] = {}
        self.saying = {name: set(places) for name, places in ERRORS.items()}
        every = [function for module in self.modules.values() for one in module.functions.values() for function in one]
        calls = {function: calls_in(function) for function in every}
        while any([self._learn(function, calls[function]) for function in every]):
            pass

    def reached(self, start: str) -> set[str]:
        """Modules that any below the package ``start`` imports, directly or by others, itself included."""
        found: set[str] = set()
        todo = [name for name in self.modules if name == start or name.startswith(f"{start}.")]
        while todo:
            if (name := todo.pop()) not in found:
                found.add(name)
                pairs = self.modules[name].brought.values()
                todo += [one for source, what in pairs for one in (source, f"{source}.{what}") if one in self.modules]
                todo += [package for package in [name.rpartition(".")[0]] if package in self.modules]
        return found

    def _learn(self, function: ast.FunctionDef, calls: list[ast.Call]) -> bool:
        """Whether a parameter was found that becomes what an error accepts or finds."""
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
        bound = names[1:] if names[:1] in (["self"], ["cls"]) else names
        parameters = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        every = {one.arg for one in parameters if one.annotation and "str" in ast.unparse(one.annotation)}
        known = self.saying.get(function.name, set())
        before = len(known)
        for given, key in self._places(calls):
            parts = [given, *(p.value for p in ast.walk(given) if isinstance(p, ast.FormattedValue))]
            for name in (p.id for p in parts if isinstance(p, ast.Name) and key != "value"):
                if name in every and name != "field":
                    known.add((bound.index(name) if name in bound else -1, name))
        self.saying[function.name] = known
        return len(known) > before

    def _places(self, calls: list[ast.Call]) -> Iterator[tuple[ast.expr, str]]:
        """(what stands there, name of the parameter) of every call that says something."""
        for call in calls:
            for at, key in sorted(self.saying.get(name_of(call), ())):
                if 0 <= at < len(call.args) and not any(isinstance(a, ast.Starred) for a in call.args[: at + 1]):
                    yield call.args[at], key
                yield from ((given.value, key) for given in call.keywords if key and given.arg == key)

    def errors(self, name: str) -> set[str]:
        """What errors of a module find and accept."""
        module = self.modules[name]
        found = {text for given, _ in self._places(module.calls) for text in self.texts(module, given, DEPTH)}
        return {text for text in found if sum(map(str.isalpha, text.replace(HOLE, ""))) >= LETTERS and " " in text}

    def words(self, name: str) -> set[str]:
        """All other words of a module, whole sentences, but for documentation and what :data:`ELSEWHERE` takes."""
        module, found = self.modules[name], set()
        todo: list[ast.AST] = [module.tree]
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                continue
            if isinstance(node, ast.Call) and name_of(node) in ELSEWHERE:
                continue
            if isinstance(node, ast.Call) and name_of(node) == "RuntimeError" and name.startswith("flowcache_core"):
                continue
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                texts = self.texts(module, node, DEPTH)
                found |= {text for text in texts - self.values if speaks(text) and not is_clause(text)}
                if isinstance(node, ast.JoinedStr):
                    todo += [inner.value for inner in node.values if isinstance(inner, ast.FormattedValue)]
                elif isinstance(node, ast.BinOp) and texts == {HOLE}:
                    todo += ast.iter_child_nodes(node)
                continue
            todo += ast.iter_child_nodes(node)
        return found

    def texts(self, module: Module, node: ast.expr, depth: int) -> set[str]:
        """Every sentence that an expression may be; its names and calls are followed ``depth`` times."""
        if not depth:
            return {HOLE}
        if (node, depth) not in self._known:
            self._known[node, depth] = {HOLE}  # for what comes back to itself
            found = self._texts(module, node, depth)
            self._known[node, depth] = found if len(found) <= MOST else {HOLE}
        return self._known[node, depth]

    def _texts(self, module: Module, node: ast.expr, depth: int) -> set[str]:
        if isinstance(node, ast.Constant):
            return {node.value if isinstance(node.value, str) else HOLE}
        if isinstance(node, ast.JoinedStr):
            return self._joined([self._put_in(module, part, depth) for part in node.values])
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined([self.texts(module, one, depth) for one in (node.left, node.right)])
        if isinstance(node, ast.IfExp):
            return self.texts(module, node.body, depth) | self.texts(module, node.orelse, depth)
        if isinstance(node, ast.BoolOp):
            return set().union(*(self.texts(module, one, depth) for one in node.values))
        if isinstance(node, ast.Name):
            where, given = self._home(module, node.id, lambda one: one.given)
            return set().union(*(self.texts(where, one, depth - 1) for one in given)) if given else {HOLE}
        if isinstance(node, ast.Call):
            return self._returned(module, node, depth - 1)
        return {HOLE}

    def _put_in(self, module: Module, part: ast.expr, depth: int) -> set[str]:
        """Of an f-string: words that may be missing are part of it, anything else is put in."""
        if not isinstance(part, ast.FormattedValue):
            return self.texts(module, part, depth)
        found = self.texts(module, part.value, depth) if isinstance(part.value, ast.Name | ast.IfExp) else {HOLE}
        return found if all(map(is_clause, found)) else {HOLE}

    @staticmethod
    def _joined(parts: list[set[str]]) -> set[str]:
        whole = {""}
        for ends in parts:
            whole = {f"{start}{end}" for start in whole for end in ends}
            if len(whole) > MOST:
                return {HOLE}
        return whole

    def _home(
        self, module: Module, name: str, kind: Callable[[Module], dict[str, list[Any]]]
    ) -> tuple[Module, list[Any]]:
        """Where a name is made, and what makes it."""
        if kind(module).get(name):
            return module, kind(module)[name]
        source, other = module.brought.get(name, ("", ""))
        if source in self.modules and source != module.name:
            return self._home(self.modules[source], other, kind)
        return module, []

    def _returned(self, module: Module, call: ast.Call, depth: int) -> set[str]:
        name = name_of(call)
        if name in self.saying and name in ERRORS:
            return self.texts(module, call.args[0], depth) if call.args else {HOLE}
        if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") not in ("self", "cls"):
            return {HOLE}
        where, functions = self._home(module, name, lambda one: one.functions)
        returns = [
            one.value
            for function in functions
            for one in ast.walk(function)
            if isinstance(one, ast.Return) and one.value is not None
        ]
        return set().union(*(self.texts(where, one, depth) for one in returns)) if returns else {HOLE}
