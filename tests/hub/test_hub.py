"""Model cards, and pushing to a hub that answers on the loopback. Nothing leaves this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.final_file import card_of
from lora_loom.trainer.runs.headless import run_folder, train
from tests.conftest import SilentHost, make_config, pictures

TOKEN = "hf_secret"


class Hub:
    """What the library asks for when it commits, as the hub answers: everything is uploaded with the commit itself."""

    def __init__(self):
        self.created, self.commits, self.tokens, self.has_card, self.broken = [], [], set(), False, False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, data, code=200):
                content = json.dumps(data).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                if code == 404:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def do_HEAD(self):
                self.answer({}, 200 if hub.has_card else 404)

            def do_GET(self):
                self.answer({"error": "not found"}, 404)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.tokens.add(self.headers.get("Authorization"))
                self.answer(*({"error": "out of order"}, 500) if hub.broken else (hub.reply(self.path, body), 200))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reply(self, path, body):
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.created.append(asked)
            return {"url": f"{self.url}/{asked.get('organization') or 'me'}/{asked['name']}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            names = [one["path"] for one in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        assert "/commit/" in path
        lines = [json.loads(line) for line in body.decode().splitlines() if line]
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.commits.append({one["path"]: base64.b64decode(one["content"]) for one in files})
        return {"commitUrl": f"{self.url}/me/cat/commit/1", "commitOid": "1", "hookOutput": ""}


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    made = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    class Local(huggingface_hub.HfApi):
        def __init__(self):
            super().__init__(endpoint=made.url)

    monkeypatch.setattr(huggingface_hub, "HfApi", Local)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield made
    made.server.shutdown()


def is_private(asked):
    """Versions of the library say it in two ways."""
    return asked["private"] if "private" in asked else asked.get("visibility") == "private"


def config_of(root, **output):
    return make_config(
        "sd3", root, name="cat", dataset=[{"folder": str(pictures()), "trigger": "zwx"}], data={"validation_split": 0.3},
        training={"steps": 2, "save_every": 1, "batch_size": 1}, validation={"prompts": ["a [cat] <b>"], "sample_steps": 1}, output=output,
    )  # fmt: skip


def test_a_card_says_what_a_person_needs_and_nothing_of_this_machine(tmp_path):
    config = config_of(tmp_path)
    train(config, SilentHost())
    card, files = card_of(run_folder(config), checkpoints=True)
    _, front, body = card.split("---\n", 2)
    data = yaml.safe_load(front)
    assert (data["instance_prompt"], data["tags"][0]) == ("zwx", "lora")
    assert data["widget"] == [{"text": "a [cat] <b>", "output": {"url": "samples/step-000002-0.png"}}]
    assert "license" not in data
    assert "# license:" in front
    for part in (
        "Trigger: `zwx`",
        "a \\[cat\\] \\<b\\>",
        "| network.rank | 2 |",
        "| optimizer.learning_rate | 0.001 |",
        "validation loss",
        "LoraLoader",
        "To be stated",
    ):
        assert part in body
    assert str(tmp_path) not in card
    assert str(pictures()) not in card
    assert set(files) == {
        "cat.safetensors",
        "cat-000001.safetensors",
        "cat-000002.safetensors",
        "samples/step-000002-0.png",
    }
    assert set(card_of(run_folder(config))[1]) == {"cat.safetensors", "samples/step-000002-0.png"}
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.instance_prompt == "zwx"


def test_a_finished_run_is_pushed_with_its_card(tmp_path, hub):
    host = SilentHost()
    config = config_of(tmp_path, hub_repo="me/cat")
    train(config, host)
    assert [(one["name"], is_private(one)) for one in hub.created] == [("cat", True)]
    assert len(hub.commits) == 1, host.text[-2:]
    (commit,) = hub.commits
    assert set(commit) == {"README.md", "cat.safetensors", "samples/step-000002-0.png"}
    assert commit["cat.safetensors"] == (tmp_path / "cat/loras/cat.safetensors").read_bytes()
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert any("pushed 2 files to" in line for line in host.text)
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_hub_that_does_not_answer_ends_no_run_and_the_command_pushes_later(tmp_path, hub):
    host = SilentHost()
    hub.broken = True
    outcome = train(config_of(tmp_path, hub_repo="me/cat", hub_checkpoints=True), host)
    assert outcome.state == "finished"
    (said,) = [line for line in host.text if line.startswith("warning: could not push to me/cat")]
    assert said.endswith(f"lora-loom push {tmp_path / 'cat'}")
    hub.broken, hub.has_card = False, True
    done = CliRunner().invoke(app, ["push", str(tmp_path / "cat")])
    assert done.exit_code == 0, done.output
    assert set(hub.commits[0]) == {
        "cat.safetensors",
        "cat-000001.safetensors",
        "cat-000002.safetensors",
        "samples/step-000002-0.png",
    }, "a card that is there stays"
    done = CliRunner().invoke(app, ["push", str(tmp_path / "cat"), "--repo", "me/other", "--public"])
    assert done.exit_code == 0, done.output
    assert is_private(hub.created[-1]) is False


def test_the_card_alone(tmp_path):
    train(config_of(tmp_path), SilentHost())
    done = CliRunner().invoke(app, ["card", str(tmp_path / "cat")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "cat/README.md").read_text().startswith("---\n")
    assert CliRunner().invoke(app, ["card", str(tmp_path / "cat")]).exit_code != 0, "it is not replaced unasked"


@pytest.mark.parametrize("name", ["https://huggingface.co/me/cat", "me/cat/x", "me/ca t", "../x", "-x"])
def test_names_are_checked_before_anything_is_loaded(name, tmp_path, host):
    with pytest.raises(ConfigError, match=r"output\.hub_repo"):
        train(config_of(tmp_path, hub_repo=name), host)


def test_a_missing_token_is_said_at_the_start(tmp_path, monkeypatch, hub):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    from lora_loom.trainer.runs.trackers import check_output

    lines = []
    check_output(config_of(tmp_path, hub_repo="me/cat").output, lines.append)
    assert "HF_TOKEN" in lines[0]
