"""ComfyUI asks a run for device memory by its own list of loaded models: against its own functions, and in a server while a run trains."""

import pytest

from .graphs import data, node, prompt, train, trivial
from .programs import run_inside

pytestmark = pytest.mark.comfyui
MODEL, RUN = 64 << 20, 100 << 20
OPTIONS = {"steps": 30, "save_every": 30, "accumulation": 2}
GIVEN, TAKEN = "ComfyUI needs memory: ", "the base is on the device again: "


@pytest.fixture(scope="module")
def found():
    return run_inside("asked_for_memory")


def test_a_prompt_that_has_room_asks_nothing_of_a_run(found):
    assert found["enough"] == {"rests": 0, "list": ["Toy", "LoraLoomRun"], "loaded": MODEL}


def test_one_that_has_none_is_given_the_runs_memory_and_loads_whole(found):
    case = found["short"]
    assert (case["rests"], case["held"], case["loaded"]) == (1, 0, MODEL)
    assert case["list"] == ["Toy", "LoraLoomRun"]  # it gave enough, so it stays in the list
    assert case["again"] == [RUN, ["Toy", "LoraLoomRun"]]


def test_a_model_that_nobody_uses_goes_first(found):
    case = found["idle_model"]
    assert (case["rests"], case["idle"], case["loaded"]) == ([0, 0], 0, MODEL)


def test_unloading_all_unloads_the_run_too_and_it_comes_back(found):
    case = found["unload_all"]
    assert (case["rests"], case["held"], case["list"]) == (1, 0, [])
    assert case["again"] == [RUN, ["LoraLoomRun"]]
    assert case["twice"] == [2, []]


def test_a_run_that_is_quicker_than_comfyui_stays_in_the_list(found):
    assert [case[2] for case in found["free_while_idle"]["lists"]] == [["LoraLoomRun"]] * 3
    assert [case[0] for case in found["free_while_idle"]["lists"]] == [1, 2, 3]


def test_what_looks_at_the_list_or_tidies_it_up_finds_an_ordinary_entry(found):
    case = found["bookkeeping"]
    assert case["list"] == ["Toy", "LoraLoomRun"]
    assert case["in use"] == ["Toy"]
    assert (case["all"], case["dead"], case["last"], case["clone"], case["rests"]) == (2, False, RUN, 0, 0)
    assert case["without the model"] == ["LoraLoomRun"]


def test_it_leaves_with_the_run_as_soon_as_no_prompt_runs(found):
    case = found["end"]
    assert case["during"] == ["LoraLoomRun"]
    assert (case["after"], case["alive"], case["loaded"]) == (["Toy"], [False, False], MODEL)


def needy(more, salt):
    """A prompt that asks ComfyUI for so many bytes more than are free."""
    return {"needy": node("LoomTestNeedsMemory", more=more, salt=salt)}


def streamed(base, name, **options):
    graph = train(base, name, **OPTIONS, **options)
    graph["memory"] = node(
        "LoomMemory", gradient_checkpointing=True, precision="auto", quantize="none", yield_max_s=0.0, base="stream"
    )
    graph["train"]["inputs"]["memory"] = ["memory", 0]
    return prompt(graph)


def test_a_run_that_is_asked_three_times_trains_the_same_lora(server, bases):
    base = data(bases["sd1"])

    def log(name):
        return (server.base / "output" / "lora_loom" / name / "log.txt").read_text()

    def counts():
        text = log("asked")
        return text.count(GIVEN), text.count(TAKEN)

    def adapter(name):
        return (server.base / "output" / "lora_loom" / name / "checkpoints" / "step-000030" / "adapter.safetensors").read_bytes()  # fmt: skip

    def a_step_later():
        server.wait_step("asked", server.run_state("asked")["step"] + 1)

    server.run(streamed(base, "never-asked"))
    server.run(streamed(base, "asked", mode="background"))
    server.wait_step("asked", 2)
    assert server.http.get("/loom_test/bytes").json()["runs"] == 1
    for salt in range(20):
        server.run(trivial(700 + salt))
    server.run(needy(-1_000_000_000, 0))
    assert counts() == (0, 0)
    for turn in (1, 2):
        server.run(needy(1_000_000, turn))
        a_step_later()
        assert counts() == (turn, turn)
    server.http.post("/free", json={"unload_models": True}).raise_for_status()
    server.wait_step("asked", server.run_state("asked")["step"] + 3)
    assert counts() == (3, 3)
    assert server.http.get("/loom_test/bytes").json()["runs"] == 1
    assert server.wait_state("asked", "finished", "failed")["state"] == "finished"
    assert adapter("asked") == adapter("never-asked")
    server.run(trivial(799))
    assert server.http.get("/loom_test/bytes").json()["runs"] == 0
