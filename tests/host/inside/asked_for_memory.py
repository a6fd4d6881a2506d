"""A run's entry in ComfyUI's own list of loaded models, against ComfyUI's own functions over that list.

The device is torch's meta device with a counter of free bytes, so that ComfyUI loads models to it as to a GPU; its real functions decide
whom they ask for how much.
"""

import contextlib
import faulthandler
import gc
import threading
import weakref
from dataclasses import dataclass

from .toys import answer, comfy, import_pack, mm, torch

META = torch.device("meta")
MB = 1 << 20
MODEL, RUN = 64 * MB, 100 * MB


class Stream:
    """What a run holds: bytes of the device."""

    def __init__(self, card):
        self.card, self.held, self.rests = card, RUN, 0
        card.taken += RUN

    def rest(self):
        freed, self.held = self.held, 0
        self.card.taken -= freed
        self.rests += bool(freed)
        return freed

    def wake(self):
        self.card.taken += RUN - self.held
        self.held = RUN


class Card:
    """A device of a size, and what is taken of it besides ComfyUI's models."""

    def __init__(self, size):
        self.size, self.taken = size, 0

    def free(self, device=None, torch_free_too=False):
        models = sum(
            one.model.loaded_size()
            for one in tuple(mm.current_loaded_models)
            if one.model and isinstance(one.model.model, Toy)
        )
        left = self.size - self.taken - models
        return (left, 0) if torch_free_too else left


@dataclass
class Run:
    """A run on a card, whose thread answers as one that holds."""

    card: Card
    host: "Host"
    memory: object
    stream: Stream
    over: threading.Event
    thread: threading.Thread

    def end(self):
        self.over.set()
        self.thread.join()


class Host:
    is_waited_for = False

    def __init__(self):
        self.nothing_runs = True

    @contextlib.contextmanager
    def quiet(self):
        yield self.nothing_runs


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4096, 4096, bias=False)


def model():
    """64 MB that ComfyUI can load. They are meta tensors from then on, which cannot come back: so they are never on the CPU again."""
    return comfy.model_patcher.ModelPatcher(Toy(), META, META)


def begin(loom, size, takes=False):
    """A card of this size with a run on it; the run's thread answers in a loop as a run that holds would, and `takes` what it gave at
    once, as one beside an idle queue."""
    card, host = Card(size), Host()
    mm.current_loaded_models.clear()
    mm.get_free_memory, mm.get_torch_device = card.free, lambda: META
    if hasattr(mm, "get_all_torch_devices"):
        mm.get_all_torch_devices = lambda *args, **options: [META]
    memory = loom("nodes.host.runs.memory.giving").DeviceMemory()
    listed = loom("nodes.host.runs.memory.listed")
    network, stream = torch.nn.Module(), Stream(card)
    network.base_stream = stream
    listed.lend(memory, network, META, host)
    over = threading.Event()

    def run():
        memory.begin()
        while not over.wait(0.002):
            if memory.serve() and takes:
                memory.take()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return Run(card, host, memory, stream, over, thread)


def names():
    return [type(one.model.model).__name__ for one in mm.current_loaded_models]


def needed():
    """What loading one such model asks for besides its own size."""
    return int(MODEL * 1.1 + mm.minimum_inference_memory())


def case_enough(loom):
    """A prompt whose model has room beside the run."""
    run = begin(loom, RUN + needed() + MODEL)
    one = model()
    mm.load_models_gpu([one])
    mm.free_memory(run.card.free() - MB, META)
    found = {"rests": run.stream.rests, "list": names(), "loaded": one.loaded_size()}
    run.end()
    return found


def case_short(loom):
    """One whose model has not."""
    run = begin(loom, RUN + needed() - MB)
    one = model()
    mm.load_models_gpu([one])
    found = {"rests": run.stream.rests, "list": names(), "loaded": one.loaded_size(), "held": run.stream.held}
    run.memory.take()
    found["again"] = (run.stream.held, names())
    run.end()
    return found


def case_idle_model(loom):
    """A model that nobody uses goes before the run does."""
    run = begin(loom, RUN + MODEL + needed() - MB)
    idle, one = model(), model()
    mm.load_models_gpu([idle])
    rests = run.stream.rests
    mm.load_models_gpu([one])
    found = {
        "rests": (rests, run.stream.rests),
        "list": names(),
        "idle": idle.loaded_size(),
        "loaded": one.loaded_size(),
    }
    run.end()
    return found


def case_unload_all(loom):
    """As /free does."""
    run = begin(loom, 10 * RUN + needed())
    one = model()
    mm.load_models_gpu([one])
    mm.unload_all_models()
    found = {"rests": run.stream.rests, "list": names(), "held": run.stream.held}
    run.memory.take()
    run.memory.take()
    found["again"] = (run.stream.held, names())
    mm.unload_all_models()
    found["twice"] = (run.stream.rests, names())
    run.end()
    return found


def case_free_while_idle(loom):
    """The run has taken its memory again before ComfyUI takes its entry out."""
    run = begin(loom, 10 * RUN + needed(), takes=True)
    lists = []
    for _ in range(3):
        mm.unload_all_models()
        for _ in range(1000):
            if run.stream.held and names():
                break
            run.over.wait(0.002)
        lists.append((run.stream.rests, run.stream.held, names()))
    run.end()
    return {"lists": lists}


def case_bookkeeping(loom):
    """Functions that only look or tidy up."""
    run = begin(loom, 10 * RUN + needed())
    one = model()
    mm.load_models_gpu([one])
    gc.collect()
    mm.cleanup_models()
    mm.cleanup_models_gc()
    mm.soft_empty_cache()
    entry = mm.current_loaded_models[-1]
    found = {
        "list": names(),
        "in use": [type(each.model).__name__ for each in mm.loaded_models(only_currently_used=True)],
        "all": len(mm.loaded_models()),
        "dead": entry.is_dead(),
        "last": entry.model_loaded_memory(),
        "clone": entry.model.clone().loaded_size(),
        "rests": run.stream.rests,
    }
    del one
    gc.collect()
    found["without the model"] = names()
    run.end()
    return found


def case_end(loom):
    """The entry goes with the run, but not while a prompt runs."""
    run = begin(loom, 10 * RUN + needed())
    entry = mm.current_loaded_models[-1]
    patcher, network = weakref.ref(entry.model), weakref.ref(entry.model.model)
    run.end()
    run.host.nothing_runs = False
    run.memory.end()
    during = names()
    mm.free_memory(1, META)
    mm.load_models_gpu([one := model()])
    run.host.nothing_runs = True
    wait = threading.Event()
    for _ in range(100):
        if patcher() is None:
            break
        wait.wait(0.05)
        gc.collect()
    del entry
    gc.collect()
    return {
        "during": during,
        "after": names(),
        "alive": [patcher() is not None, network() is not None],
        "loaded": one.loaded_size(),
    }


def main():
    faulthandler.dump_traceback_later(40, exit=True)
    loom = import_pack()
    cases = {name.removeprefix("case_"): case for name, case in globals().items() if name.startswith("case_")}
    answer({name: case(loom) for name, case in cases.items()})


if __name__ == "__main__":
    main()
