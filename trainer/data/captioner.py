"""Captions by another program or function: it is given images, and what it says is written beside them."""

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO

from ..errors import ConfigError, DataError, StoppedError, some
from ..storage.atomic import write_bytes
from ..types import Progress
from .images.load import image_suffixes
from .sets.caption_files import sidecar
from .sets.folders import Listings, walk

PLACE = "{image}"
"""Stands for the path of an image among the arguments of a program that is started for each of them."""
SUFFIXES = (".txt", ".caption")
"""What counts as a caption file that is there."""
Captioned = Iterable[tuple[Path, str]]
"""(image, its caption) one after another."""
LAST_WORDS = 400
"""Characters of what a program wrote to stderr that an error shows."""


@dataclass(kw_only=True)
class Written:
    """What became of a folder's images."""

    written: list[Path] = field(default_factory=list)
    """The caption files that were written."""
    kept: int = 0
    """Images that have a caption file already."""
    empty: list[Path] = field(default_factory=list)
    """Images for which the captioner had no words; nothing was written for them."""

    def text(self) -> str:
        """The report as plain text."""
        lines = [f"{len(self.written)} captions written"]
        if self.kept:
            lines.append(f"{self.kept} images have one already and were left alone (--overwrite replaces them)")
        if self.empty:
            lines.append(f"no caption for {some([path.name for path in self.empty])}")
        return "\n".join(lines)


def images_to_caption(folder: Path, suffix: str, *, recursive: bool, overwrite: bool) -> tuple[dict[Path, Path], int]:
    """Returns ({image: its caption file}, how many images have one already and are left out). Images of one name share a caption file.

    Raises DataError for a folder without images.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    images = [path for path in walk(folder, recursive=recursive).files if path.suffix.lower() in image_suffixes()]
    if not images:
        raise DataError(f"{folder} holds no images{'' if recursive else ' (--recursive looks into sub-folders too)'}")
    found: dict[Path, Path] = {}
    kept, listings = 0, Listings()
    for path in images:
        there = sidecar(path, tuple(dict.fromkeys((suffix, *SUFFIXES))), listings)
        target = there or path.with_name(path.stem + suffix)
        if there is not None and not overwrite:
            kept += 1
        elif target not in found.values():
            found[path] = target
    return found, kept


def write_captions(
    wanted: dict[Path, Path], captioned: Captioned, progress: Progress, should_stop: Callable[[], bool]
) -> Written:
    """Write each caption as soon as it is there, so that what was done stays where a captioner fails.

    Raises DataError for an image that was not asked for or not answered, StoppedError where a stop was asked for.
    """
    done, left = Written(), dict(wanted)
    progress(0, len(wanted))
    for image, caption in captioned:
        if image not in left:
            raise DataError(f"the captioner answered {str(image)!r}, which it was not asked for, or twice")
        target = left.pop(image)
        text = caption.strip()
        if text:
            write_bytes(target, f"{text}\n".encode())
            done.written.append(target)
        else:
            done.empty.append(image)
        progress(len(wanted) - len(left), len(wanted))
        if should_stop():
            raise StoppedError(f"stopped: {len(done.written)} captions are written")
    if left:
        raise DataError(
            f"the captioner had no answer for {some([str(path) for path in left], 3)}; {len(done.written)} captions are written"
        )
    return done


def captions_by_program(program: Sequence[str], images: Sequence[Path], timeout: float) -> Iterator[tuple[Path, str]]:
    """What a program says. No shell is involved: `program` is the file and its arguments.

    With `{image}` among the arguments it is started for each image, and its output is the caption. Else it is started once, reads
    {"image": path}, a line for each, and writes {"image": path, "caption": text}, a line for each, in any order.
    Raises ConfigError for a program that cannot be started, DataError for one that fails or answers something else.
    """
    if any(PLACE in part for part in program[1:]):
        for image in images:
            yield image, _output([part.replace(PLACE, str(image)) for part in program], image, timeout)
    else:
        yield from _stream(program, images)


def _output(program: Sequence[str], image: Path, timeout: float) -> str:
    try:
        done = subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{program[0]} took more than {timeout:g} s for {image}: --timeout allows more") from error
    except OSError as error:
        raise _no_start(program, error) from error
    if done.returncode:
        raise _failed(program, done.returncode, done.stderr, f" for {image}")
    try:
        return done.stdout.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{program[0]} wrote something for {image} that is not UTF-8 text") from error


def _stream(program: Sequence[str], images: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The answers of a program that runs once. It is ended where nobody asks for more of them."""
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
        except OSError as error:
            raise _no_start(program, error) from error
        assert process.stdin
        assert process.stdout
        threading.Thread(target=_ask, args=(process.stdin, images), daemon=True).start()
        try:
            for line in process.stdout:
                if line.strip():
                    yield _answer(program, line)
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        if code:
            said.seek(0)
            raise _failed(program, code, said.read())


def _ask(stream: IO[bytes], images: Sequence[Path]) -> None:
    """Write the questions; a program that ends early does not read them all."""
    try:
        with stream:
            for image in images:
                stream.write(json.dumps({"image": str(image)}).encode() + b"\n")
    except OSError:
        pass


def _answer(program: Sequence[str], line: bytes) -> tuple[Path, str]:
    try:
        row: object = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    image, caption = (row.get("image"), row.get("caption")) if isinstance(row, dict) else (None, None)
    if not isinstance(image, str) or not isinstance(caption, str):
        shown = line.decode("utf-8", "replace").strip()[:120]
        raise DataError(
            f'{program[0]} wrote {shown!r}: each line of its output has to be {{"image": …, "caption": …}}; messages belong to stderr'
        )
    return Path(image), caption


def _no_start(program: Sequence[str], error: OSError) -> ConfigError:
    return ConfigError(f"{program[0]!r} cannot be started: {error.strerror or error}")


def _failed(program: Sequence[str], code: int, stderr: bytes, where: str = "") -> DataError:
    words = " ".join(stderr.decode("utf-8", "replace").strip()[-LAST_WORDS:].splitlines()[-5:])
    return DataError(f"{program[0]} ended with code {code}{where}{f': {words}' if words else ''}")


def captions_by_function(address: str, images: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """What a Python function says: "module:function" or "file.py:function", called once with the list of paths. It returns or yields a text
    for each, in their order. Raises ConfigError if there is no such function, DataError for answers of another form.
    """
    module, _, name = address.rpartition(":")
    function = getattr(_module(module, address), name, None) if module and name else None
    if not callable(function):
        raise ConfigError(f"--python {address!r} is no function: write module:function, or file.py:function")
    try:
        answers = iter(function(list(images)))
        for image in images:
            caption = next(answers, None)
            if caption is None:
                return
            if not isinstance(caption, str):
                raise DataError(f"{address} returned {str(caption)[:80]!r} for {image}, which is not text")
            yield image, caption
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{address} failed: {type(error).__name__}: {error}") from error


def _module(name: str, address: str) -> ModuleType:
    """A module by its name, also one of the current folder, or the file of one."""
    try:
        if not name.endswith(".py"):
            sys.path.append(str(Path.cwd()))
            try:
                return importlib.import_module(name)
            finally:
                sys.path.remove(str(Path.cwd()))
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert spec
        assert spec.loader
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
    except Exception as error:
        raise ConfigError(f"--python {address!r} cannot be imported: {type(error).__name__}: {error}") from error
    return made
