"""A few mutated inputs of every kind; `python -m bench fuzz` tries thousands."""

import pytest

from lora_loom.trainer.errors import ModelFileError, reading, reads
from tests.fuzzing import KINDS, tried

COUNTS = {"Bases": 2, "Runs": 4, "Folders": 3, "Loras": 6, "Sheets": 6}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_mutated_input_is_read_or_refused(tmp_path, kind):
    ready = kind(tmp_path)
    results = {number: tried(ready, number, seed=0) for number in range(COUNTS.get(kind.__name__, 12))}
    assert not {number: result for number, result in results.items() if result not in ("", "refused")}


def test_what_a_library_raises_names_the_file_and_a_cancel_passes():
    with (
        pytest.raises(ModelFileError, match=r"x\.bin cannot be used \(KeyError: 'a'\): get or write it again"),
        reading("x.bin"),
    ):
        {}["a"]

    class InterruptProcessingException(Exception):
        pass

    @reads(lambda path: path)
    def read(path):
        raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        read("x.bin")
