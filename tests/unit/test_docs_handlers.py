"""docs/handlers.md: its examples are Python, and those that stand alone are handlers modules that load."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from howdah import handler

PAGE = (Path(__file__).parents[2] / "docs" / "handlers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
WHOLE = [example for example in EXAMPLES if "from howdah import" in example and "sentry_sdk" not in example]


def test_there_are_examples_of_both_sorts() -> None:
    assert len(WHOLE) >= 4
    assert len(EXAMPLES) > len(WHOLE)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_python(example: str) -> None:
    compile(example, "docs/handlers.md", "exec")


def test_examples_that_stand_alone_load_and_register(tmp_path: Path) -> None:
    for number, example in enumerate(WHOLE):
        (tmp_path / f"example{number}.py").write_text(example, encoding="utf-8")
    names = [f"example{number}" for number in range(len(WHOLE))]
    code = f"from howdah.registry import load; registry = load({names!r}); print(len(list(registry.registrations())))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(WHOLE)


def test_every_argument_of_the_declaration_is_explained() -> None:
    table = PAGE[PAGE.index("| argument of `@handler` | means |") : PAGE.index("The payload is validated")]
    assert [name for name in inspect.signature(handler).parameters if f"`{name}" not in table] == []
