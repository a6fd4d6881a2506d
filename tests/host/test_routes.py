"""The HTTP routes of a real server: what they serve, what they refuse."""

import http.client
import json
import subprocess
import time

import pytest

from .graphs import data, node, prompt, train
from .server import PYTHON, Listener
from .test_jobs import LONG, stop

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def run(server, bases):
    server.run(prompt(train(data(bases["sd3"]), "served")))
    return server.base / "output" / "lora_loom" / "served"


def status(server, path, method="GET", body=None, **headers):
    """Without a client that tidies the path."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(
        method, path, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    return connection.getresponse().status


def test_listing_and_details_under_both_prefixes(server, run):
    for prefix in ("", "/api"):
        names = [record["name"] for record in server.http.get(f"{prefix}/lora_loom/runs").json()["runs"]]
        assert "served" in names
        record = server.http.get(f"{prefix}/lora_loom/runs/served").json()
        assert (record["state"], record["step"], record["checkpoints"]) == ("finished", 6, [3, 6])


@pytest.mark.parametrize(
    "path",
    [
        "../run.json", "..%2f..%2fuser", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "%2fetc%2fpasswd",
        "C:%5cwindows%5cwin.ini", "samples%00.png", "lock", "checkpoints/step-000006/state", "link.txt", "outside/x.txt", "samples",
    ],
)  # fmt: skip
def test_nothing_outside_the_run_is_served(server, run, path):
    if not (run / "link.txt").exists():
        (run / "link.txt").symlink_to("/etc/hostname")
        (run.parent.parent / "x.txt").write_text("not yours")
        (run / "outside").symlink_to(run.parent.parent)
    assert status(server, f"/lora_loom/runs/served/files/{path}") in (400, 403, 404)


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2fserved", "con", "served%00", "a%2fb", "%3Cscript%3E"])
def test_names_cannot_leave_the_folder(server, run, name):
    assert status(server, f"/lora_loom/runs/{name}") in (400, 404)
    assert status(server, f"/lora_loom/runs/{name}/stop", "POST", "{}", Content_Type="application/json") in (400, 404)


def test_files_come_with_their_type_and_no_rights(server, run):
    (run / "report.html").write_text("<script>alert(1)</script>")
    (run / "plot.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    for name, kind in (("log.txt", "text/plain"), ("run.json", "application/json"), ("report.html", "text/html"), ("plot.svg", "image/svg+xml")):  # fmt: skip
        answer = server.http.get(f"/lora_loom/runs/served/files/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert ("sandbox" in answer.headers.get("content-security-policy", "")) == name.endswith(("html", "svg"))
    lora = server.http.get("/lora_loom/runs/served/files/loras/served.safetensors")
    assert lora.headers["content-disposition"] == "attachment"


def test_actions_need_json_and_the_same_origin(server, run):
    path = "/lora_loom/runs/served/pause"
    assert status(server, path) in (404, 405)  # a GET falls through to the host's static files
    assert status(server, path, "POST", "x=1", Content_Type="application/x-www-form-urlencoded") == 403
    assert status(server, path, "POST", "{}", Content_Type="text/plain") == 403
    assert status(server, path, "POST", "{}", Content_Type="application/json", Origin="https://evil.example") == 403
    own = f"http://127.0.0.1:{server.port}"
    assert status(server, path, "POST", "{}", Content_Type="application/json", Origin=own) == 409  # it is not active
    assert status(server, path, "POST", "{}", Content_Type="application/json") == 409


def test_since_is_checked(server, run):
    for text in ("x", "1e3", "9" * 40, "%00"):
        assert status(server, f"/lora_loom/runs/served/metrics?since={text}") == 400


def test_a_name_with_markup_is_refused_and_texts_with_markup_stay_texts(server, bases):
    assert "name = '<script>'" in json.dumps(server.refused(prompt(train(data(bases["sd3"]), "<script>"))))
    folder = server.base / "input" / "markup"
    from .conftest import add_pictures

    add_pictures(folder, count=2)
    (folder / "0.txt").write_text("<script>alert('caption')</script>")
    server.run(prompt(train(data(bases["sd3"], folder="markup"), "markup")))
    for path in (server.base / "output" / "lora_loom" / "markup").rglob("*"):
        if path.suffix in (".html", ".svg"):
            assert "<script>alert" not in path.read_text()


def test_events_tell_the_story_of_a_run(server, bases):
    listener = Listener(server)
    server.run(prompt(train(data(bases["sd3"]), "events")))
    listener.until(
        lambda: [e for e in listener.of("lora_loom.run") if (e["name"], e["state"]) == ("events", "finished")]
    )
    states = [event["state"] for event in listener.of("lora_loom.run") if event["name"] == "events"]
    assert states[0] == "queued"
    assert states[-1] == "finished"
    assert "running" in states
    steps = [event for event in listener.of("lora_loom.step") if event["name"] == "events"]
    assert steps[-1]["step"] == 6
    assert any("0 keys unmatched" in event["text"] for event in listener.of("lora_loom.log"))
    listener.close()


def test_step_events_come_at_most_five_times_a_second(server, bases):
    server.run(prompt(train(data(bases["sd3"]), "fast", **LONG)))
    server.wait_step("fast", 1)
    listener = Listener(server)

    def losses():
        told = [(at, data) for at, kind, data in list(listener.events) if kind == "lora_loom.step"]
        times = [at for at, data in told if data["name"] == "fast" and "learning_rate" in data]
        return times if len(times) > 6 else []

    times = listener.until(losses)
    listener.close()
    assert (times[-1] - times[0]) / (len(times) - 1) > 0.18
    steps = server.run_state("fast")["step"]
    assert steps > len(times), "there were more steps than events"
    stop(server, "fast")


def test_samples_come_from_validation_only(server, bases):
    base = data(bases["sd3"])
    server.run(prompt(train(base, "blind", **LONG)))
    server.wait_step("blind", 1)
    answer = server.act("blind", "sample")
    assert answer.status_code == 409
    assert "LoomValidation" in answer.json()["error"]
    stop(server, "blind")
    graph = train(base, "seeing", **LONG)
    graph["validation"] = node("LoomValidation", vae=base["sources"]["vae"], clip=base["sources"]["clip"], prompts="a red thing\na blue thing", every=0, width=64, height=48, steps=2)  # fmt: skip
    graph["train"]["inputs"]["validation"] = ["validation", 0]
    server.run(prompt(graph))
    server.wait_step("seeing", 1)
    assert server.act("seeing", "sample").status_code == 200
    deadline = time.monotonic() + 30
    while len(server.run_state("seeing")["samples"]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    samples = server.run_state("seeing")["samples"]
    assert len(samples) == 2
    assert server.http.get(f"/lora_loom/runs/seeing/files/{samples[0]}").headers["content-type"] == "image/png"
    stop(server, "seeing")


@pytest.mark.parametrize("family", ["sd1", "sd3", "flux"])
def test_previews_at_intervals(server, bases, family):
    base = data(bases[family])
    graph = train(base, f"previews-{family}", steps=4, save_every=2)
    graph["validation"] = node("LoomValidation", vae=base["sources"]["vae"], clip=base["sources"]["clip"], prompts="a red thing", every=2, width=64, height=64, steps=2)  # fmt: skip
    graph["train"]["inputs"]["validation"] = ["validation", 0]
    server.run(prompt(graph))
    assert server.run_state(f"previews-{family}")["samples"] == [f"samples/step-00000{n}-0.png" for n in (0, 2, 4)]


def test_a_cached_validation_serves_the_next_run(server, bases):
    """ComfyUI runs LoomValidation once; its VAE is still there for a second LoomTrain."""
    base = data(bases["sd3"])
    base["validation"] = node("LoomValidation", vae=base["sources"]["vae"], clip=base["sources"]["clip"], prompts="a red thing", every=2, width=64, height=64, steps=2)  # fmt: skip
    for name in ("first-of-two", "second-of-two"):
        graph = train(base, name, steps=2, save_every=2)
        graph["train"]["inputs"]["validation"] = ["validation", 0]
        record = server.run(prompt(graph))
        assert len(server.run_state(name)["samples"]) == 2
    [(_, cached)] = [message for message in record["status"]["messages"] if message[0] == "execution_cached"]
    assert "validation" in cached["nodes"]


def test_patience_and_measuring_of_the_validation_node(server, bases):
    """A rate that ruins the adapter: the held-out loss is measured at every second step, and the run stops early."""
    base, name = data(bases["sd3"], held_out_share=0.34), "impatient"
    graph = train(base, name, steps=60, save_every=60, learning_rate=0.3, keep_best=True)
    graph["validation"] = node("LoomValidation", vae=base["sources"]["vae"], clip=base["sources"]["clip"], prompts="a red thing", every=0, width=64, height=48, steps=1, measure_every=2, patience=2, timesteps=3)  # fmt: skip
    graph["train"]["inputs"]["validation"] = ["validation", 0]
    server.run(prompt(graph))
    folder = server.base / "output" / "lora_loom" / name
    record = json.loads((folder / "run.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["held_out"] for line in lines if "held_out" in line}
    assert record["state"] == "finished"
    assert {len(row) for line in lines for row in line.get("held_out_parts", [])} == {3}, "at as many noise levels"
    assert list(losses) == list(range(0, record["step"] + 1, 2))
    low = min(losses, key=losses.get)
    assert record["step"] == low + 2 * 2 < 60
    files = {path.stem for path in (folder / "loras").iterdir()}
    assert {name, f"{name}-{record['step']:06d}"} <= files
    assert low == 0 or f"{name}-{low:06d}" in files, "the low before it got worse has its file"
    if record["best"]:
        lowest, run = (
            folder / "loras" / f"{name}{step}.safetensors" for step in (f"-{record['best']['lowest']:06d}", "")
        )
        assert run.read_bytes() == lowest.read_bytes(), "keep_best"
        assert record["best"]["step"] == min((step for step in losses if f"{name}-{step:06d}" in files), key=losses.get)


def test_curves_for_tensorboard(server, bases):
    """Written where the library is there; else it is said before anything is encoded."""
    base, name = data(bases["sd3"]), "curves"
    graph = train(base, name, steps=4, save_every=4)
    graph["validation"] = node("LoomValidation", vae=base["sources"]["vae"], clip=base["sources"]["clip"], prompts="a red thing", every=0, width=64, height=48, steps=1, report="tensorboard")  # fmt: skip
    graph["train"]["inputs"]["validation"] = ["validation", 0]
    if subprocess.run([PYTHON, "-c", "import tensorboard"], check=False, capture_output=True).returncode:
        assert "tensorboard is not installed; pip install tensorboard" in server.fail(prompt(graph))
        return
    server.run(prompt(graph))
    assert list((server.base / "output" / "lora_loom" / name / "tensorboard").iterdir())


def test_everything_a_route_says_is_json(server, run):
    for path in ("/lora_loom/runs/none", "/lora_loom/runs/served/files/none.png"):
        answer = server.http.get(path)
        assert answer.status_code == 404
        assert json.loads(answer.text)["error"]
