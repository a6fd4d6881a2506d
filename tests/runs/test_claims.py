"""Who trains a run has it; who only asks whether it is free is no one who trains it."""

import threading

from lora_loom.trainer.runs.run_folder import RunFolder


def test_who_asks_at_the_same_time_whether_a_run_is_free_is_told_so(tmp_path):
    path = tmp_path / "run"
    together, answers = threading.Barrier(8), []

    def ask():
        for _ in range(20):
            together.wait()
            answers.append(RunFolder(path).is_free())

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert answers == [True] * 160


def test_a_run_that_is_held_for_a_moment_is_waited_for(tmp_path):
    held, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    held.lock()
    assert not other.is_free()
    claiming = threading.Thread(target=other.lock)
    claiming.start()
    held.unlock()
    claiming.join()
    assert not RunFolder(tmp_path / "run").is_free(), "it has been claimed"
    other.unlock()
    assert RunFolder(tmp_path / "run").is_free()
