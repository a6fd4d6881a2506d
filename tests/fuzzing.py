"""Mutated inputs of every kind, from a seed: what reads them returns or raises one of our errors, soon and in little memory.

`bench/fuzz.py` makes thousands of them, `tests/test_fuzz.py` a few of each kind.
"""

import importlib
import json
import random
import resource
import shutil
import signal
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.comfy_api.workflow import load_workflow, plan_prompts, with_settings
from lora_loom.trainer.config.checks import parse_sizes
from lora_loom.trainer.config.prompt_library import read_library
from lora_loom.trainer.config.run import ModelConfig
from lora_loom.trainer.config.toml import load, read_options
from lora_loom.trainer.data.cache.fill import fill
from lora_loom.trainer.data.cache.keys import find_work
from lora_loom.trainer.data.cache.store import Cache
from lora_loom.trainer.drawing.text import wrap
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.importers.read import import_file
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.lora_tools.inspect import inspect, to_text
from lora_loom.trainer.lora_tools.merge import merge_loras
from lora_loom.trainer.lora_tools.resize import Keep, resize
from lora_loom.trainer.runs.headless import prepare, train
from lora_loom.trainer.runs.record import run_config, training_images
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.storage.names import check_name, safe_name
from lora_loom.trainer.sweep.axes import parse_counts, parse_numbers, parse_seeds
from lora_loom.trainer.sweep.run import load_sheet, write_strips, write_tables
from tests.conftest import SilentHost, pictures, tiny_folder
from tests.data.test_fuzz import descriptions, image_files, mutated
from tests.kill_stages import SIDES, grid, short_run, whole_run

SECONDS, BYTES = 5, 1_000_000_000
"""Most time and memory that one input may cost."""
NUMBERS = (0, -1, 1e308, 10**9, 10**400, float("nan"), float("inf"), 1e-320, 2**63, True)
TEXTS = (
    "", " ", "\0", "~nobody/x", "a\udcffb", "../../x", "/", "//host/x", "\\\\host\\x", "x" * 100_000, "空" * 90, "com¹", "a\r\nb\x85c\u2029d",
    "[" * 50_000, "{" * 50_000, "regex:([a-z_.0-9]+)+X", "regex:((((", "regex:a{99999999999}", "0-1 [1000000000]", "9" * 5000, "9" * 400 + "-1 [4]",
    "=", "a=", "nan", "1e999", "-1--1 [99999]", "1x1, 99999999999x99999999999", "**/*", "a**b", "/etc/*",
)  # fmt: skip
ODD = (None, [], {}, [[]], {"": None}, [None], *NUMBERS, *TEXTS)
JUNK = (b"", b"{}", b"[]", b"null", b"\xff\xfe\0", b"[" * 60_000, b'{"a":' * 60_000, b"\0" * 4096)


class LateError(BaseException):
    """An input took longer than `SECONDS`. Nothing catches it on the way."""


@contextmanager
def limited(seconds):
    """Raise LateError in the body after so many seconds."""

    def late(number, frame):
        raise LateError

    # Processor time, because the machine may be busy, and a longer time of the clock for what waits for something.
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 20 * seconds))
    before = [signal.signal(number, late) for number, _, _ in timers]
    for _, timer, most in timers:
        signal.setitimer(timer, most)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def changed(data, rng, depth=0):
    """Plain data with one value, somewhere in it, replaced, removed or doubled."""
    if isinstance(data, dict) and data and (depth == 0 or rng.random() < 0.8):
        name = rng.choice(list(data))
        made = dict(data)
        kind = rng.random()
        if kind < 0.1:
            del made[name]
        elif kind < 0.15:
            made[rng.choice([str(one) for one in TEXTS[:12]])] = made.pop(name)
        else:
            made[name] = changed(data[name], rng, depth + 1)
        return made
    if isinstance(data, list) and data and rng.random() < 0.8:
        place = rng.randrange(len(data))
        return [*data[:place], changed(data[place], rng, depth + 1), *data[place + 1 :]]
    return rng.choice(ODD)


def changed_json(content, rng):
    """The bytes of a JSON text after a change of its bytes, its data, or all of it."""
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(JUNK)
    if kind < 0.4:
        return mutated(content, rng)
    return json.dumps(changed(json.loads(content), rng)).encode("utf-8", "surrogatepass")


def changed_tensors(content, rng):
    """The bytes of a safetensors file with another header or other data."""
    if rng.random() < 0.3:
        return mutated(content, rng)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.randint(1, 3)):
        entry = header[rng.choice(names)]
        kind = rng.randrange(5)
        if kind == 0:
            entry["shape"] = rng.choice([[], [0], [1], [0, 4], [10**9, 0], entry["shape"][::-1], [*entry["shape"], 1]])
        elif kind == 1:
            entry["dtype"] = rng.choice(["F64", "F16", "BF16", "I8", "BOOL", "F8_E4M3", "U64", "F4", "x"])
        elif kind == 2:
            entry["data_offsets"] = rng.choice([[0, 0], [5, 1], [0, 2**63], [-1, 4], entry["data_offsets"][::-1]])
        elif kind == 3:
            name = rng.choice(names)
            header[rng.choice(["", "a", name + ".alpha", name[::-1], name.replace("A", "B")])] = header.get(name, entry)
        else:
            header["__metadata__"] = changed(header.get("__metadata__") or {"a": "b"}, rng)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def changed_file(path, rng):
    """What may have become of a file, by its kind; None for one that is gone."""
    content = path.read_bytes()
    if rng.random() < 0.08:
        return None
    if rng.random() < 0.08:
        return rng.choice(JUNK)
    if path.suffix == ".json" and content[:1] in (b"{", b"["):
        return changed_json(content, rng)
    if path.suffix == ".safetensors":
        return changed_tensors(content, rng)
    return mutated(content, rng) if content else rng.choice(JUNK)


class Kind:
    """A kind of input. `ready` makes what is mutated, in a folder of its own, once; `act` reads one mutation of it."""

    def __init__(self, root):
        self.root = root / type(self).__name__
        self.root.mkdir(parents=True)
        self.ready()

    def ready(self):
        """Nothing by default."""

    def act(self, rng):
        raise NotImplementedError

    @contextmanager
    def damaged(self, folder, rng):
        """One file below a folder is another one meanwhile."""
        path = rng.choice(sorted(one for one in folder.rglob("*") if one.is_file() and not one.name.endswith(".lock")))
        before, after = path.read_bytes(), changed_file(path, rng)
        if after is None:
            path.unlink()
        else:
            path.write_bytes(after)
        try:
            yield path
        finally:
            if path.is_dir():
                shutil.rmtree(path)
            path.write_bytes(before)


class Configs(Kind):
    """TOML files and --set."""

    def ready(self):
        from lora_loom.trainer.config.toml import to_dict

        self.tables = to_dict(whole_run(self.root))

    def act(self, rng):
        from tests.fuzzing_toml import as_toml

        path = self.root / "a.toml"
        content = as_toml(changed(self.tables, rng) if rng.random() < 0.7 else self.tables).encode("utf-8", "replace")
        path.write_bytes(mutated(content, rng) if rng.random() < 0.4 else content)
        name = rng.choice(
            [
                "training.steps",
                "sweep.seeds",
                "dataset.0.repeats",
                "dataset.x.y",
                "network.rank",
                "",
                "a",
                "name",
                "model.base",
            ]
        )
        load(path, [f"{name}={rng.choice(TEXTS)}"] if rng.random() < 0.5 else [], lambda text: None)
        read_options("options", rng.choice(TEXTS))


class Bases(Kind):
    """A diffusers folder with one file that is another."""

    def ready(self):
        self.base = Path(shutil.copytree(tiny_folder("sd3"), self.root / "base"))
        prepared = prepare(whole_run(self.root), SilentHost())
        self.work = find_work(prepared.cache, prepared.dataset, prepared.identity)

    def act(self, rng):
        with self.damaged(self.base, rng):
            base = open_base(ModelConfig(base=str(self.base), device="cpu"))
            base.check_encoders()
            encoders = base.load_encoders(tiled=False)
            shutil.rmtree(self.root / "cache", ignore_errors=True)
            fill(Cache(self.root / "cache"), self.work, encoders, 1, lambda *progress: None)
            base.load_denoiser(ModelConfig(base=str(self.base), device="cpu"), "float32")


class Loras(Kind):
    """LoRA files in every tool."""

    def ready(self):
        train(short := whole_run(self.root, steps=1), SilentHost())
        self.file = self.root / "a.safetensors"
        shutil.copy(RunFolder(self.root / short.name).lora_file(None), self.file)
        self.whole = self.root / "whole.safetensors"
        shutil.copy(self.file, self.whole)

    def act(self, rng):
        self.file.write_bytes(changed_tensors(self.whole.read_bytes(), rng))
        out, tools = self.root / "out.safetensors", [
            lambda: to_text(inspect(self.file), self.file),
            lambda: resize(self.file, out, Keep(rank=1, method=rng.choice(["rank", "sv_fro"]), amount=0.5)),
            lambda: merge_loras([(self.whole, 1.0), (self.file, 0.5)], out, None),
            lambda: convert(self.file, out, rng.choice(["diffusers", "kohya", "native"])),
        ]  # fmt: skip
        rng.choice(tools)()


class Images(Kind):
    """Pictures, and the files that list them."""

    def ready(self):
        self.files = [*image_files(self.root), *descriptions(self.root)]

    def act(self, rng):
        from lora_loom.trainer.data.images.probe import probe
        from lora_loom.trainer.data.sets.dataset_file import read_dataset_file
        from lora_loom.trainer.data.sets.tables import read_table

        original = rng.choice(self.files)
        path = self.root / f"changed{original.suffix}"
        content = changed_file(original, rng)
        path.write_bytes(b"" if content is None else content)
        if original in self.files[: -len(descriptions(self.root))]:
            probe(path, path.read_bytes(), focused=True)
        elif original.stem == "metadata":
            read_table(path)
        else:
            read_dataset_file(path)


class Workflows(Kind):
    """Graphs in API form, with settings and sweeps."""

    def ready(self):
        folder = Path(__file__).parents[1] / "example_workflows" / "api"
        self.files = sorted(folder.glob("*.json"))

    def act(self, rng):
        path = self.root / "a.json"
        path.write_bytes(changed_json(rng.choice(self.files).read_bytes(), rng))
        graph = load_workflow(path)
        target = rng.choice(["LoomTrain.rank", "LoomTrain.name", "1.x", "", "steps", rng.choice(TEXTS)])
        graph = with_settings(graph, [f"{target}={rng.choice(TEXTS)}"], lambda name: None)
        plan_prompts(graph, [f"{target}={rng.choice(TEXTS)}"], lambda name: None)


class Imports(Kind):
    """Configurations of other trainers, and prompt libraries."""

    def ready(self):
        samples = importlib.import_module("tests.importers.samples")
        self.texts = [value for name, value in vars(samples).items() if name[:1].isupper() and isinstance(value, str)]

    def act(self, rng):
        path = self.root / "a.txt"
        content = rng.choice(self.texts).encode()
        path.write_bytes(
            rng.choice([*JUNK, *[one.encode("utf-8", "replace") for one in TEXTS]])
            if rng.random() < 0.1
            else mutated(content, rng)
        )
        import_file(path)
        library = self.root / "b.json"
        library.write_bytes(changed_json(json.dumps({"a": "a toad", "b": {"name": "x", "prompt": "y"}}).encode(), rng))
        read_library(library, "prompt_library")


class Runs(Kind):
    """Any file of a run, when it is continued and when it is listed."""

    def ready(self):
        train(whole_run(self.root / "whole", steps=2), SilentHost())

    def act(self, rng):
        root = self.root / "now"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.root / "whole", root)
        run = root / "run"
        path = rng.choice(sorted(one for one in run.rglob("*") if one.is_file()))
        content = changed_file(path, rng)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        elif rng.random() < 0.5:
            path.mkdir()
        folder = RunFolder(run)
        folder.exists(), folder.read_metrics(), folder.recommended(), folder.saved_loras()
        if rng.random() < 0.3:
            run_config(folder)
            training_images(folder)
        train(whole_run(root, steps=3), SilentHost())


class Sheets(Kind):
    """The files of a sweep."""

    def ready(self):
        whole = self.root / "whole"
        whole.mkdir()
        short_run(whole)
        grid(whole)

    def act(self, rng):
        folder = self.root / "whole" / "run" / "strips"
        with self.damaged(folder, rng):
            sheet = load_sheet(folder)
            write_strips(sheet, **SIDES, name="other")
            write_tables(sheet, **SIDES, name="other")


class Caches(Kind):
    """Shards of the cache."""

    def ready(self):
        cache = Cache(self.root / "cache")
        for number in range(3):
            cache.put({f"key {number}": {"latents": torch.full((4, 8, 8), float(number))}})

    def act(self, rng):
        shutil.rmtree(self.root / "now", ignore_errors=True)
        shutil.copytree(self.root / "cache", self.root / "now")
        path = rng.choice(sorted((self.root / "now").glob("*.safetensors")))
        content = changed_tensors(path.read_bytes(), rng) if rng.random() < 0.8 else rng.choice(JUNK)
        path.write_bytes(content)
        cache = Cache(self.root / "now")
        for key in list(cache.items):
            cache.get(key)
            cache.shapes(key)


class Texts(Kind):
    """Fields that people type into."""

    def act(self, rng):
        text = (
            rng.choice(TEXTS)
            if rng.random() < 0.5
            else mutated(rng.choice(TEXTS).encode("utf-8", "replace")[:200] or b"x", rng).decode("utf-8", "replace")
        )
        network = torch.nn.ModuleDict({f"block_{i}": torch.nn.Linear(2, 2) for i in range(30)})
        rng.choice(
            [
                lambda: parse_numbers("strengths", text),
                lambda: parse_seeds("seeds", text, 0),
                lambda: parse_counts("steps", text),
                lambda: parse_sizes("sizes", text),
                lambda: check_name(text),
                lambda: safe_name(text),
                lambda: wrap(text[:2000], 200, 12),
                lambda: resolve_targets(network, {}, f"regex:{text}" if rng.random() < 0.5 else text, text),
                lambda: open_base(ModelConfig(base=text, device="cpu")),
            ]
        )()


class Folders(Kind):
    """Datasets whose folders, names and captions are odd."""

    def ready(self):
        shutil.copytree(pictures(), self.root / "set")
        prepare(whole_run(self.root), SilentHost())  # libraries that are imported on the way

    def act(self, rng):
        config = whole_run(self.root)
        option = rng.choice(["folder", "masks", "references", "metadata", "background", "caption_extension"])
        text = rng.choice(TEXTS)
        made = replace(config.dataset[0], **{"folder": str(self.root / "set"), option: text})
        name = rng.choice(["999999999_toad", "a.txt", "0.txt", "metadata.jsonl", "metadata.csv"])
        path = self.root / "set" / name
        before = path.read_bytes() if path.is_file() else None
        path.write_bytes(rng.choice(JUNK))
        try:
            prepare(replace(config, dataset=(made,)), SilentHost())
        finally:
            path.unlink()
            if before is not None:
                path.write_bytes(before)


KINDS = (Configs, Bases, Loras, Images, Workflows, Imports, Runs, Sheets, Caches, Texts, Folders)


def tried(kind, number, seed):
    """Try one input. Returns "" if it was read, "refused" for one of our errors, else what went wrong, with its place."""
    rng = random.Random(f"{seed} {type(kind).__name__} {number}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with limited(SECONDS):
            kind.act(rng)
        result = ""
    except LoomError:
        result = "refused"
    except LateError:
        return f"late\n{traceback.format_exc(limit=-6)}"
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return f"{type(error).__name__}\n{traceback.format_exc(limit=-6)[-1500:]}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return f"memory {grown / 1e9:.1f} GB" if grown > BYTES else result
