"""Results survive a kill, and intervals say what textbooks say."""

import json

import numpy as np
import pytest
from scipy.stats import t as student

from tess2lite.evaluation.intervals import bootstrap
from tess2lite.evaluation.results import Log, stamp, write_json
from tess2lite_course.experiments.seed_statistics import interval, verdict


def test_the_interval_over_seeds():
    """Student's t of two degrees of freedom at 97.5 % is 4.303."""
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert student.cdf(4.303, 2) == pytest.approx(0.975, abs=1e-4)
    assert interval([1.0]) == (1.0, float("inf"))


def test_the_bootstrap_covers_what_it_should():
    """95 % intervals of 200 samples hold the true mean about 190 times, and are as wide as the normal's."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        sample = generator.binomial(1, 0.4, 60)
        mean, low, high = bootstrap(sample.tolist())
        assert mean == pytest.approx(sample.mean()) and low <= mean <= high
        held += low <= 0.4 <= high
    assert 178 <= held <= 199
    assert high - low == pytest.approx(2 * 1.96 * sample.std() / 60**0.5, rel=0.15)
    assert bootstrap([1.0, 0.0, 1.0]) == bootstrap([1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="no scores"):
        bootstrap([])


def test_a_verdict_needs_its_interval_off_zero():
    assert verdict([1.0, 1.1, 0.9]) == "holds"
    assert verdict([-1.0, -1.1, -0.9]) == "does not hold"
    assert verdict([1.0, -1.1, 0.9]) == verdict([5.0]) == "too small to tell"


def test_a_log_goes_on_after_a_kill(tmp_path):
    log = Log(tmp_path / "deep" / "answers.jsonl")
    log.add("a", {"text": "näive\n"})
    log.add("b", 2)
    with log.path.open("a") as file:
        file.write('["c", {"te')  # killed in mid-line
    again = Log(log.path)
    assert again.known == {"a": {"text": "näive\n"}, "b": 2}
    again.add("c", 3)
    assert Log(log.path).known == {"a": {"text": "näive\n"}, "b": 2, "c": 3}


@pytest.mark.parametrize(
    "content", ["not json\n", '{"a": 1}\n', '{"a": 1, "b": 2}\n', '["a"]\n', "[1, 2]\nx\n", '{"a": 1}', "a text"]
)
def test_another_file_is_not_taken_for_a_log(tmp_path, content):
    path = tmp_path / "other.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no log of answers; give another file"):
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
