"""No message is longer than a person reads: ten lines or 1,200 characters."""

import pytest

from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.errors import ConfigError, DataError, did_you_mean, problem_list, shortened


def is_short(text):
    return len(text) <= 1200 and len(text.splitlines()) <= 10


@pytest.mark.parametrize("count", [1, 5, 10, 11, 5000])
@pytest.mark.parametrize("length", [10, 100, 3000])
def test_lists_of_problems(count, length):
    problems = [f"{number} {'x' * length}" for number in range(count)]
    text = str(DataError(f"run.toml: {problem_list(problems)}"))
    assert is_short(text)
    assert text.startswith("run.toml: 0 xxx")
    if length == 10:
        assert problem_list(problems) == "\n".join(problems) or text.endswith(f"… and {count - 9} more")


def test_the_remedy_at_the_end_of_a_long_message_stays():
    text = str(ConfigError(f"value = {'[1, 2]' * 5000}: use a smaller one"))
    assert is_short(text)
    assert text.startswith("value = [1, 2]")
    assert text.endswith(": use a smaller one")
    assert "characters, the middle left out" in text


def test_short_messages_stay_as_they_are():
    text = "\n".join("123456789" for _ in range(10))
    assert shortened(text) == text == str(DataError(text))
    assert str(DataError()) == ""


def test_long_lists_of_known_names():
    text = did_you_mean("x", [f"transformer_blocks.{number}.attn.to_q.weight" for number in range(800)])
    assert text.startswith("known: transformer_blocks.0.attn.to_q.weight, ")
    assert text.endswith(" more")
    assert len(text) < 400
    assert did_you_mean("x", ["beta", "alpha"]) == "known: alpha, beta"


def test_many_wrong_options_at_once():
    with pytest.raises(ConfigError) as error:
        parse({"name": "n", "model": {f"no_such_option_{number}": 1 for number in range(500)}}, TrainConfig)
    assert is_short(str(error.value))
