import json

import pytest

from tests.comfy_api.fake import GRAPH, FakeComfyUI


@pytest.fixture
def fake():
    server = FakeComfyUI()
    yield server
    if not server.stopped:
        server.kill()


@pytest.fixture
def workflow(tmp_path):
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(GRAPH))
    return path
