"""Handlers are imported by name or by file, and a failure names the line that its author has to look at."""

from __future__ import annotations

import queue
import sys
from typing import TYPE_CHECKING

import pytest

from howdah.errors import HandlersError
from howdah.modules import import_handlers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def untouched_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_may_have_any_name_and_imports_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("value = 1")
    file = tmp_path / "my-jobs.v2.py"
    file.write_text("import beside_it; runs = beside_it.value")
    import_handlers(str(file))
    assert sys.modules["my-jobs.v2"].runs == 1


def test_a_file_is_imported_once_also_when_it_and_its_neighbour_import_each_other(tmp_path: Path) -> None:
    (tmp_path / "tasks_of_mine.py").write_text("import its_neighbour\nseen = []")
    (tmp_path / "its_neighbour.py").write_text("import tasks_of_mine\ntasks_of_mine.by_neighbour = True")
    import_handlers(str(tmp_path / "tasks_of_mine.py"))
    first = sys.modules["tasks_of_mine"]
    assert first.by_neighbour
    import_handlers(str(tmp_path / "tasks_of_mine.py"))
    assert sys.modules["tasks_of_mine"] is first


def test_a_file_that_is_called_like_a_module_of_the_library_leaves_that_alone(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("mine = True")
    import_handlers(str(tmp_path / "queue.py"))
    assert sys.modules["queue"] is queue
    assert sys.modules["howdah_file_queue"].mine


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n\nif True\n", r"SyntaxError: expected ':' \(.*/broken\.py, line 3\)"),
        ("x = 1\nx + ''\n", r"TypeError: .* \(.*/broken\.py, line 2\)"),
        ("\nimport no_such_module\n", r"No module named 'no_such_module' \(.*/broken\.py, line 2\)"),
        ("import json\njson.loads('{')\n", r"JSONDecodeError: .* \(.*/broken\.py, line 2\)"),
    ],
)
def test_a_failure_names_the_authors_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(HandlersError, match=said):
        import_handlers(str(tmp_path / "broken.py"))
    sys.path.insert(0, str(tmp_path))
    with pytest.raises(HandlersError, match=said):
        import_handlers("broken")
    assert "broken" not in sys.modules


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(HandlersError, match=r"there is no file .*/nowhere\.py"):
        import_handlers(str(tmp_path / "nowhere.py"))
    with pytest.raises(HandlersError, match="there is no module 'nowhere_at_all' on the path"):
        import_handlers("nowhere_at_all")
