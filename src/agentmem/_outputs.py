"""Files that commands write: checked before anything is measured, and there whole or as they were."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click


def write_json(json_file: Path | None, record: dict[str, Any]) -> None:
    """Write a record, if it has somewhere to go."""
    if json_file is not None:
        write(json_file, json.dumps(record, indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file whole, or leave what was there; a click error where it cannot be."""
    import click

    try:
        _write_atomically(path, text)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None


def check_writable(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    # Said before a minute of measuring, not after it.
    import click

    if path is not None:
        if not path.parent.is_dir():
            raise click.BadParameter(f"there is no directory {path.parent}")
        exists = os.path.exists(path)
        if exists and not os.access(path, os.W_OK):
            raise click.BadParameter(f"{path} cannot be written")
        if not exists or path.is_file():
            unfinished = _unfinished(path.resolve())
            try:  # permissions do not tell: the file system may be read-only, or full, or the name too long
                unfinished.write_text("")
            except OSError as error:
                raise click.BadParameter(f"{path} cannot be written: {error.strerror}") from None
            unfinished.unlink()
    return path


def check_distinct(read: Sequence[Path], *written: Path | None) -> None:
    """Refuse to write over what is read, or over what is written."""
    import click

    known = {path.resolve() for path in read}
    for path in written:
        if path is not None and path.is_file() | (not path.exists()):
            if path.resolve() in known:
                raise click.UsageError(f"{path} is named twice: what is there would be lost")
            known.add(path.resolve())


def _unfinished(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def _write_atomically(path: Path, text: str) -> None:
    if path.exists() and not path.is_file():  # /dev/stdout or a pipe must not be replaced
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    unfinished = _unfinished(path)
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
