"""Imports run one way: a room knows those below it, and never those above."""

import ast
from pathlib import Path

import pytest

import gpt2_ablate

ROOT = Path(gpt2_ablate.__file__).parent
BELOW = {"errors": set()}
BELOW["utils"] = {"errors"}
BELOW["records"] = BELOW["utils"] | {"utils"}
BELOW["ops"] = {"errors"}
BELOW["model"] = BELOW["ops"] | {"ops", "utils"}
BELOW["data"] = BELOW["ops"] | {"ops", "utils"}
BELOW["weights"] = BELOW["model"] | {"model", "data"}
BELOW["training"] = BELOW["weights"] | {"weights"}
BELOW["evaluation"] = BELOW["training"]
BELOW["benchmarks"] = BELOW["evaluation"] | {"evaluation", "training", "records"}
BELOW["study"] = BELOW["benchmarks"] | {"benchmarks"}
BELOW["report"] = {"errors", "utils", "records"}  # what is not in a record, it cannot say
BELOW["cli"] = BELOW["study"] | {"study", "report"}


def imported(file):
    """The rooms that a file imports from, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
        for name in names:
            if name and name.startswith("gpt2_ablate."):
                yield name.split(".")[1]


def test_every_room_has_its_place():
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == BELOW.keys()


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_from_those_below_it(room):
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else (ROOT / room).rglob("*.py")
    for file in files:
        above = set(imported(file)) - BELOW[room] - {room}
        assert not above, f"{file.relative_to(ROOT)} imports from {', '.join(sorted(above))}"
