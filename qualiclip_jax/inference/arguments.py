"""Which files the arguments of a command mean."""

import codecs
import glob
import os
import sys
from collections.abc import Sequence

from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, list_images
from qualiclip_jax.inference import urls


def collect(arguments: Sequence[str], null: bool = False) -> tuple[list[str], list[ImageError]]:
    """The files meant by arguments, each once, in order.

    Args:
      arguments: files, folders (with all below), patterns, all of them as URLs, too, and `-` for a list of files and
        folders, and of URLs of files, on standard input.
      null: whether that list is separated by NUL characters; else by newlines.

    Returns:
      The files; and an error for each folder that cannot be read, and each folder or pattern without an image. A list
      may name folders without an image: `find` prints these, too.

    Raises:
      UserError: there is no file, and one reason for it.
    """
    found: dict[str, None] = {}
    problems: list[ImageError] = []
    for argument in arguments:
        listed = argument == "-"
        for name in split_names(sys.stdin.buffer.read(), null) if listed else [argument]:
            if urls.is_url(name) and not listed:
                try:
                    found |= dict.fromkeys(urls.images(name))
                except UserError as error:
                    problems.append(ImageError(name, str(error).removeprefix(f"{name}: ")))
            elif os.path.isdir(name) or (not listed and not os.path.lexists(name) and glob.has_magic(name)):
                try:
                    found |= dict.fromkeys(map(str, list_images(name, problems.append)))
                except UserError as error:
                    if not listed:
                        problems.append(ImageError(name, str(error).removeprefix(f"{name}: ")))
            else:
                found[name] = None  # a file; if it does not exist, that is its error
    if not found and len(problems) == 1:
        raise problems[0]
    if not found and not problems:
        raise UserError("the list on standard input names no image")
    return list(found), problems


def split_names(data: bytes, null: bool = False) -> list[str]:
    """The names in a list, as the file system takes them: any byte but the separator may be in a name.

    Args:
      data: the list. A byte order mark, and a carriage return before a newline where no file is called so, are left
        out: they come from lists made on Windows.
      null: whether names are separated by NUL characters; else by newlines.

    Raises:
      UserError: NUL characters in a list that is separated by newlines.
    """
    if null:
        return [os.fsdecode(name) for name in data.split(b"\0") if name]
    if b"\0" in data:
        raise UserError(
            "the list on standard input holds NUL characters: say -0 if they separate names, else save it as UTF-8"
        )
    lines = map(os.fsdecode, data.removeprefix(codecs.BOM_UTF8).split(b"\n"))
    names = (line if os.path.lexists(line) else line.removesuffix("\r") for line in lines)
    return [name for name in names if name]
