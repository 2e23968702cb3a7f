"""Results survive a kill."""

import json

import pytest

from tess2lite.evaluation.results import Log, stamp, write_json


def test_log_resumes_after_a_kill(tmp_path):
    log = Log(tmp_path / "deep" / "answers.jsonl")
    log.add("a", {"text": "näive\n"})
    log.add("b", 2)
    with log.path.open("a") as file:
        file.write('["c", {"te')  # killed in mid-line
    again = Log(log.path)
    assert again.records == {"a": {"text": "näive\n"}, "b": 2}
    again.add("c", 3)
    assert Log(log.path).records == {"a": {"text": "näive\n"}, "b": 2, "c": 3}


@pytest.mark.parametrize(
    "content", ["not json\n", '{"a": 1}\n', '{"a": 1, "b": 2}\n', '["a"]\n', "[1, 2]\nx\n", '{"a": 1}', "a text"]
)
def test_another_file_is_refused_as_a_log(tmp_path, content):
    path = tmp_path / "other.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="is not a log of answers; give another file"):
        Log(path)
    assert path.read_text() == content


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_the_stamp_names_versions_and_device():
    assert {"tess2lite", "python", "torch", "transformers", "device"} == stamp().keys() and all(stamp().values())
