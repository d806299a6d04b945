"""What is public: every name exists, is listed, documented and annotated, and no class grows without bound."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bindsock

PACKAGE = Path(bindsock.__file__).parent
FIELDS = 14
"""The maximum number of fields that a class itself may have."""
TOP_LEVEL = 10
"""The maximum number of modules at the package's top level."""


def lists_names(path: Path) -> bool:
    return any(isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__" for n in ast.parse(path.read_text()).body)


def modules_with_all() -> list[str]:
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in sorted(PACKAGE.rglob("*.py")) if lists_names(path)]
    return [".".join(("bindsock", *path.parts)).removesuffix(".__init__") for path in paths]


def loaded(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", modules_with_all())
def test_every_name_that_is_listed_exists(name: str) -> None:
    module = loaded(name)
    assert len(module.__all__) == len(set(module.__all__))
    for listed in module.__all__:
        assert getattr(module, listed) is not None
    assert set(module.__all__) <= set(dir(module))


def test_a_star_import_brings_every_public_name() -> None:
    script = "from bindsock import *; import bindsock; print([n for n in bindsock.__all__ if n not in globals()])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def public(kind: Any) -> list[tuple[str, Any]]:
    found = []
    for name in ("bindsock", "bindsock.anyio", "bindsock.blocking", "bindsock.testing"):
        found += [(f"{name}.{n}", getattr(loaded(name), n)) for n in loaded(name).__all__]
    return [(name, value) for name, value in found if kind(value)]


@pytest.mark.parametrize(("name", "value"), public(lambda v: inspect.isclass(v) or inspect.isroutine(v)))
def test_every_public_class_and_function_is_documented(name: str, value: Any) -> None:
    assert inspect.getdoc(value), name


@pytest.mark.parametrize(("name", "function"), public(inspect.isroutine))
def test_every_parameter_of_a_public_function_is_annotated(name: str, function: Any) -> None:
    signature = inspect.signature(function)
    missing = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
    assert missing == []
    assert signature.return_annotation is not signature.empty, name


@pytest.mark.parametrize(
    ("name", "cls"), public(lambda v: dataclasses.is_dataclass(v) and inspect.isclass(v) and v is not bindsock.Statistics)
)
def test_every_public_value_is_frozen(name: str, cls: Any) -> None:
    if name.endswith("TCPConnectable"):
        return  # anyio's own are not, either
    assert cls.__dataclass_params__.frozen, name


def own_fields(cls: ast.ClassDef) -> set[str]:
    """The attributes that methods of the class assign to ``self``."""
    fields = set()
    for node in ast.walk(cls):
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign | ast.AugAssign)
            else []
        )
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
                    fields.add(part.attr)
    return fields


def test_no_class_has_more_fields_than_can_be_kept_in_mind() -> None:
    crowded = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and len(fields := own_fields(node)) > FIELDS:
                crowded[f"{path.relative_to(PACKAGE)}: {node.name}"] = len(fields)
    assert crowded == {}


def test_the_top_level_stays_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= TOP_LEVEL
