"""Damaged files of a run: one plain line, and never for other runs."""

import pytest
from PIL import Image

from lora_loom.trainer.errors import RunError
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.sweep.cells import is_whole

NO_RECORDS = (b"", b"{}", b"[]", b"null", b"5", b"\xff\xfe", b"[" * 100_000, b'{"config": null}', b'{"updated": null}')


@pytest.mark.parametrize("content", NO_RECORDS, ids=lambda content: repr(content[:12]))
def test_a_record_that_is_none_is_one_plain_line(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json cannot be read .*choose another name"):
        RunFolder(tmp_path).read()


def test_lines_of_metrics_that_are_no_records_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'5\n{"a": 1}\n\xff\n{"step": 1}\n{"step": "x"}\n{"step": 2, "lo')
    assert RunFolder(tmp_path).read_metrics() == [{"step": 1}]


def test_a_cell_counts_as_there_only_with_every_byte(tmp_path):
    path = tmp_path / "cell.png"
    assert not is_whole(path)
    Image.effect_noise((32, 32), 50).save(path)
    content = path.read_bytes()
    assert is_whole(path)
    half = len(content) // 2
    for damaged in (
        b"",
        content[:half],
        content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
        content[:-12],
    ):
        path.write_bytes(damaged)
        assert not is_whole(path), len(damaged)
