"""Coverage-guided fuzzing of everything that reads foreign bytes: `python -m bench parsers --seconds 60` (needs atheris).

Each parser runs in a process of its own under libFuzzer, which keeps and changes the inputs that reach new branches of our code.
Anything but a result or one of our errors ends the process, and the input that did it is kept in .bench/parsers. `bench fuzz` changes
whole files of real runs instead, without looking at what they reach.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .common import RESULTS, report

Parser = Callable[[bytes], object]
OPTIONS = ("-rss_limit_mb=2000", "-timeout=5", "-print_final_stats=1", "-max_len=4000")
EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
COVERED = re.compile(r"cov: (\d+)")


def through_a_file(read: Callable[[Path], object], suffix: str) -> Parser:
    """A parser of bytes from one that reads a file."""
    path = Path(tempfile.mkdtemp(prefix="loom-parsers-")) / f"file{suffix}"

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return parse


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def parsers() -> dict[str, tuple[Callable[[], Parser], list[bytes]]]:
    """{name: (what makes the parser, when its code may be imported, inputs to begin with)}."""
    root = Path(__file__).parents[1]
    graph = (root / "example_workflows" / "api" / "demo.json").read_bytes()
    return {
        "configuration": (_configuration, [b'name = "a"\n[model]\nbase = "x"\n[[dataset]]\nfolder = "y"\n', b"a.b = [1, {c = 2}]"]),
        "other trainers": (_imports, [b'{"--model_family": "flux"}', b"accelerate launch a.py --network_dim=4", b"job: extension\nconfig: {}"]),
        "prompt file": (_prompts, [b"a toad --w 512 --h 512 --d 1 --l 3 --s 20 --n blurred", b'{"a": {"prompt": "b"}}']),
        "table": (_table, [b"file_name,text\na.png,a toad\n", b'{"file_name": "a.png", "text": "b"}\n']),
        "dataset file": (_dataset_file, [b'[{"id": "a", "type": "local", "instance_data_dir": "b"}]']),
        "tensors": (_tensors, [b'\x48\0\0\0\0\0\0\0{"a.lora_up.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}\0\0\0\0']),
        "workflow": (_workflow, [graph]),
        "axes of a sweep": (_axes, [b"0.5, 1-2 [0.25]", b"1-10 (+3)", b"512x768, 1024"]),
        "caption": (_caption, [b"a {red|blue} toad, two, three", b"zib, a (toad:1.2)"]),
    }  # fmt: skip


def _configuration() -> Parser:
    from lora_loom.trainer.config.toml import load

    return through_a_file(lambda path: load(path, note=lambda text: None), ".toml")


def _imports() -> Parser:
    from lora_loom.trainer.importers.read import import_file

    return through_a_file(import_file, ".txt")


def _prompts() -> Parser:
    from lora_loom.trainer.config.prompt_library import read_library, read_prompt_file
    from lora_loom.trainer.errors import LoomError

    def read(path: Path) -> object:
        try:
            return read_prompt_file(path, "validation.prompts")
        except LoomError:
            return read_library(path, "validation.prompt_library")

    return through_a_file(read, ".txt")


def _table() -> Parser:
    from lora_loom.trainer.data.sets.tables import read_table
    from lora_loom.trainer.errors import LoomError

    readers = [through_a_file(read_table, suffix) for suffix in (".jsonl", ".csv", ".json")]

    def parse(data: bytes) -> object:
        for reader in readers[1:]:
            try:
                reader(data)
            except LoomError:
                continue
        return readers[0](data)

    return parse


def _dataset_file() -> Parser:
    from lora_loom.trainer.data.sets.dataset_file import read_dataset_file

    return through_a_file(read_dataset_file, ".json")


def _tensors() -> Parser:
    from lora_loom.trainer.storage.tensor_file import ReadTensors, TensorFile

    def read(path: Path) -> object:
        try:
            file = ReadTensors(path)
            file.keys()
        except (OSError, ValueError):  # what it documents; its caller names the shard
            pass
        return TensorFile(path).layout

    return through_a_file(read, ".safetensors")


def _workflow() -> Parser:
    from lora_loom.trainer.comfy_api.workflow import load_workflow

    return through_a_file(load_workflow, ".json")


def _axes() -> Parser:
    from lora_loom.trainer.config.checks import parse_sizes
    from lora_loom.trainer.errors import LoomError
    from lora_loom.trainer.sweep.axes import parse_counts, parse_numbers, parse_seeds

    readings: list[Callable[[str], Any]] = [
        lambda text: parse_numbers("strengths", text),
        lambda text: parse_seeds("seeds", text, 0),
        lambda text: parse_counts("steps", text),
        lambda text: parse_sizes("sizes", text),
    ]

    def parse(data: bytes) -> object:
        for reading in readings:
            try:
                reading(text_of(data))
            except LoomError:
                continue
        return None

    return parse


def _caption() -> Parser:
    import torch

    from lora_loom.trainer.data.sets.captions import split_tags
    from lora_loom.trainer.families.common.text.prompt_weights import segments
    from lora_loom.trainer.lora.targets import resolve_targets

    network = torch.nn.ModuleDict({"block": torch.nn.Linear(2, 2)})

    def parse(data: bytes) -> object:
        text = text_of(data)
        segments(text)
        split_tags(text, ",")
        return resolve_targets(network, {}, f"regex:{text}")

    return parse


def fuzz(name: str, corpus: str, seconds: int, seed: int) -> None:
    """Run one parser under libFuzzer in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["lora_loom"]):
        parse = parsers()[name][0]()
    from lora_loom.trainer.errors import LoomError

    def one(data: bytes) -> None:
        with suppress(LoomError):
            parse(data)

    kept = RESULTS / "parsers" / name.replace(" ", "-")
    kept.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [sys.argv[0], *OPTIONS, f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={kept}/", corpus], one
    )
    atheris.Fuzz()


def try_parser(name: str, seconds: int, seed: int) -> dict[str, Any]:
    """How many inputs a parser was given, how many branches they reached, and how it failed, if it did."""
    with tempfile.TemporaryDirectory(prefix="loom-corpus-") as corpus:
        for number, content in enumerate(parsers()[name][1]):
            (Path(corpus) / str(number)).write_bytes(content)
        command = [sys.executable, "-m", "bench.parsers", "--one", name, "--corpus", corpus, "--seconds", str(seconds), "--seed", str(seed)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    executed, covered = EXECUTED.findall(done.stderr), COVERED.findall(done.stderr)
    said = "" if done.returncode == 0 else done.stderr[-3000:]
    return {"inputs": int(executed[-1]) if executed else 0, "branches": int(covered[-1]) if covered else 0, "failed": said}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench parsers")
    parser.add_argument("--seconds", type=int, default=20, help="for each parser")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one", default="", help="one parser alone, in this process")
    parser.add_argument("--corpus", default="")
    given = parser.parse_args([word for word in sys.argv[1:] if word != "parsers"])
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("== parsers: left out, needs atheris: pip install atheris")
        return
    if given.one and given.corpus:
        fuzz(given.one, given.corpus, given.seconds, given.seed)
        return
    figures: dict[str, Any] = {}
    for name in [given.one] if given.one else parsers():
        figures |= {f"{name}: {what}": value for what, value in try_parser(name, given.seconds, given.seed).items()}
    report("parsers", figures)
    assert not any(value for name, value in figures.items() if name.endswith("failed"))


if __name__ == "__main__":
    main()
