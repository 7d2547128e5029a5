"""Import a module of handlers, by its name or by its file, and say where it failed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from howdah.errors import HandlersError

if TYPE_CHECKING:
    from types import ModuleType

#: What the author of a handlers module did not write, by the beginning of its path; "<" is the import system itself.
_NOT_THE_AUTHORS = ("<", sysconfig.get_path("stdlib"), str(Path(__file__).parent))


def import_handlers(module: str) -> None:
    """Import `package.module`, or the file `folder/any-name.py`. Raises HandlersError, which names the line that failed."""
    is_file = module.endswith(".py")
    try:
        if is_file:
            _import_file(Path(module).resolve())
        else:
            importlib.import_module(module)
    except HandlersError:
        raise
    except ModuleNotFoundError as error:
        if not is_file and error.name is not None and (module + ".").startswith(error.name + "."):
            raise HandlersError(
                f"there is no module {module!r} on the path or in {Path.cwd()}; set HOWDAH_HANDLERS"
            ) from error
        raise HandlersError(f"module {module!r} cannot be imported: {error}{_where(error)}") from error
    except Exception as error:
        raise HandlersError(f"module {module!r} cannot be imported: {_say(error)}{_where(error)}") from error


def _import_file(path: Path) -> None:
    """Import a file as `python file.py` would see it: its folder comes first on the path.

    Its name is its stem, so that the modules beside it import the same module, and not a second one, by that name.
    """
    if not path.is_file():
        raise HandlersError(f"there is no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem
    if (held := sys.modules.get(name)) is not None:
        if _file_of(held) == path:
            return
        name = f"howdah_file_{name}"  # such as queue.py: the library's module of that name stays what it is
        if name in sys.modules:
            return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HandlersError(f"{path} is no Python file")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[name]
        raise


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _say(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}"


def _where(error: Exception) -> str:
    """Give the line that failed: the last one of the author's own, not of a library, this one or the import system."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" ({error.filename}, line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_NOT_THE_AUTHORS) and "site-packages" not in frame.filename:
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
