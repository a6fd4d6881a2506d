"""The nodes in ComfyUI's V3 form, beside the same classes in V1 form under names with a prefix: one server has both."""

import pytest

from .conftest import add_pictures, new_server
from .graphs import node
from .server import COMFYUI, ROOT

pytestmark = pytest.mark.comfyui
V1 = "V1"
V1_PACK = f"""
import importlib, sys, types
root = types.ModuleType("loom_v1")
root.__path__ = [{str(ROOT)!r}]
sys.modules["loom_v1"] = root
nodes = importlib.import_module("loom_v1.nodes")
NODE_CLASS_MAPPINGS = {{"{V1}" + name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items()}}
NODE_DISPLAY_NAME_MAPPINGS = {{"{V1}" + name: title for name, title in nodes.NODE_DISPLAY_NAME_MAPPINGS.items()}}
"""
ONLY_V3 = {
    "output_matchtypes": None, "experimental": False, "deprecated": False, "dev_only": False, "api_node": False,
    "price_badge": None, "essentials_category": None,
}  # fmt: skip
"""What V3 says of every node and V1 of none; what it says of ours is what V1 means by saying nothing."""
BOTH = pytest.mark.parametrize("prefix", ["", V1])


@pytest.fixture(scope="module")
def server(tmp_path_factory, checkpoints):
    made = new_server(tmp_path_factory, checkpoints)
    pack = made.base / "custom_nodes" / "loom_in_v1"
    pack.mkdir()
    (pack / "__init__.py").write_text(V1_PACK)
    running = made.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def declared(server):
    """{id: /object_info} of both forms."""
    return server.http.get("/object_info").json()


@pytest.fixture(scope="module")
def ours(declared):
    return sorted(name.removeprefix(V1) for name in declared if name.startswith(f"{V1}Loom"))


def has_search_aliases():
    """Whether this version's V3 has what the pack needs."""
    source = (COMFYUI / "comfy_api" / "latest" / "_io.py").read_text(encoding="utf-8")
    return "search_aliases: list[str] = field" in source


def same_form(info):
    """An entry of /object_info without what the two forms spell differently: drop-down lists, hidden inputs, what only V3 says."""
    found = {key: value for key, value in info.items() if key not in ONLY_V3 or value != ONLY_V3[key]}
    groups = {}
    for group in ("required", "optional"):
        groups[group] = {}
        for name, entry in info["input"].get(group, {}).items():
            kind, options = entry
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            groups[group][name] = (kind, options)
    order = {group: list(members) for group, members in groups.items()}
    assert order == {group: info["input_order"].get(group, []) for group in groups}
    return {**found, "input": groups, "input_order": order, "name": found["name"].removeprefix(V1), "python_module": ""}


def hidden(info):
    """What a node is given without an input."""
    return {kind[0] if isinstance(kind, list) else kind for kind in info["input"].get("hidden", {}).values()}


def test_the_pack_has_the_form_that_this_version_can_take(declared, ours):
    assert len(ours) >= 28
    forms = {"price_badge" in declared[name] for name in ours}
    assert forms == {has_search_aliases()}, "V3 where it has search aliases, else V1, and never some of each"
    assert not any("price_badge" in declared[V1 + name] for name in ours)


def test_both_forms_say_the_same_of_every_node(declared, ours):
    for name in ours:
        v3, v1 = declared[name], declared[V1 + name]
        assert same_form(v3) == same_form(v1), name
        assert v3["input"].keys() - {"hidden"} >= v1["input"].keys() - {"hidden"}
        # V3 gives an output node the prompt and the workflow unasked
        unasked = {"PROMPT", "EXTRA_PNGINFO"} if v3["output_node"] else set()
        assert hidden(v1) <= hidden(v3) <= hidden(v1) | unasked


def test_search_aliases_reach_the_page(declared, ours):
    if not has_search_aliases():
        pytest.skip("this version of ComfyUI has no search aliases")
    assert all(declared[name]["search_aliases"] for name in ours)
    assert {"lora", "finetune", "dreambooth"} <= set(declared["LoomTrain"]["search_aliases"])


def test_the_main_nodes_show_at_most_six_widgets(declared):
    for name in ("LoomDataset", "LoomCache", "LoomTrain", "LoomValidation", "LoomSweep"):
        widgets = [
            options
            for kind, options in (entry for group in ("required", "optional") for entry in declared[name]["input"].get(group, {}).values())
            if isinstance(kind, list) or kind in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")
        ]  # fmt: skip
        assert len(widgets) > 6 >= sum(not options.get("advanced") for options in widgets)


def dataset(prefix, **inputs):
    return node(f"{prefix}LoomDataset", **{"folder": "pics", "captions": "auto", **inputs})


def shown(prefix, **inputs):
    """The contact sheet of a dataset, saved."""
    return {
        "dataset": dataset(prefix, **inputs),
        "sheet": node("SaveImage", images=["dataset", 1], filename_prefix="sheet"),
    }


def refusals(server, prompt):
    """{node id: [(type, details)]} without the prefix."""
    found = server.refused(prompt)
    return {key: [(e["type"], e["details"].replace(V1, "")) for e in one["errors"]] for key, one in found.items()}


def a_training(prefix, **inputs):
    return {
        "base": node(f"{prefix}LoomDemoModel"),
        "cache": node(f"{prefix}LoomCache", dataset=["base", 3], vae=["base", 2], clip=["base", 1], resolution=128, buckets="pixel", bucket_step=16),
        "train": node(
            f"{prefix}LoomTrain", model=["base", 0],
            **{"cache": ["cache", 0], "name": "mine", "steps": 2, "learning_rate": 1e-3, "rank": 4, "batch_size": 1, "save_every": 2, "seed": 0, "mode": "wait", "existing_run": "resume", **inputs},
        ),
    }  # fmt: skip


WRONG = {
    "a name that is no name of a folder": lambda prefix: a_training(prefix, name="../mine"),
    "a value outside of its range": lambda prefix: a_training(prefix, batch_size=0),
    "a value that is not in the list": lambda prefix: a_training(prefix, mode="now and then"),
    "no number": lambda prefix: a_training(prefix, rank="four"),
    "an input that is missing": lambda prefix: {key: {**value, "inputs": {k: v for k, v in value["inputs"].items() if k != "clip"}} for key, value in a_training(prefix).items()},
    "a link of another type": lambda prefix: a_training(prefix, cache=["base", 3]),
    "a role that is unknown": lambda prefix: shown(prefix, role="trian"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_both_forms_refuse_the_same_with_the_same_words(server, wrong):
    v3, v1 = (refusals(server, WRONG[wrong](prefix)) for prefix in ("", V1))
    assert v3
    assert v3 == v1


@BOTH
def test_a_role_of_former_workflows_is_accepted(server, prefix):
    """ComfyUI's own check of the list is left out for what VALIDATE_INPUTS names."""
    server.run(shown(prefix, role="regularisation"))


def ran_again(server, prompt):
    """The nodes of a prompt that were not taken from ComfyUI's cache."""
    record = server.run(prompt)
    [cached] = [data["nodes"] for kind, data in record["status"]["messages"] if kind == "execution_cached"]
    return prompt.keys() - set(cached)


@BOTH
def test_a_node_runs_again_when_its_files_have_changed(server, prefix):
    folder = f"changing{prefix}"
    add_pictures(server.base / "input" / folder, count=2)
    asked = shown(prefix, folder=folder)
    assert ran_again(server, asked) == {"dataset", "sheet"}
    assert not ran_again(server, asked)
    add_pictures(server.base / "input" / folder, count=3)
    assert ran_again(server, asked) == {"dataset", "sheet"}


@BOTH
def test_two_nodes_with_the_same_inputs_both_run_and_know_their_ids(server, prefix):
    """A node that asks for its id is never given the result of its double."""
    made = a_training(prefix)
    doubles = {"base": made["base"], "first": made["cache"], "second": made["cache"]}
    record = server.run(doubles)
    assert {key: record["meta"][key]["node_id"] for key in ("first", "second")} == {
        "first": "first",
        "second": "second",
    }
    first, second = (record["outputs"][key] for key in ("first", "second"))
    assert first.keys() == second.keys() == {"text", "images"}


def test_both_forms_train_the_same_lora(server):
    """Hidden inputs, links, what is shown on the node: a whole run, and the run that it left."""
    files = {}
    for prefix in ("", V1):
        name = f"run{prefix}"
        record = server.run(a_training(prefix, name=name), timeout=300)
        assert record["outputs"]["train"] == {"loom_run": [name]}
        run = server.wait_state(name, "finished", "failed")
        assert (run["state"], run["step"]) == ("finished", 2)
        found = sorted((server.base / "models" / "loras" / "lora_loom" / name).glob("*.safetensors"))
        files[prefix] = tensors(found[-1])
    assert files[""].keys() == files[V1].keys()
    assert all((value == files[V1][key]).all() for key, value in files[""].items())


def tensors(path):
    from safetensors.torch import load_file

    return load_file(path)
