"""Files of a run: whole, of the promised kind, and as harmless as the explorer."""

import matplotlib.image
import pytest
from PIL import Image
from test_explorer import HOSTILE, read, trajectory

from tess2lite.viz.export import export


def test_html_is_one_offline_document(tmp_path):
    html = export(trajectory(["soup", *HOSTILE]), tmp_path / "run.html").read_text()
    assert html.startswith("<!doctype html>") and "http" not in html.replace("http://www.w3.org/2000/svg", "")
    reader = read(html)
    assert reader.tags.count("script") == 1 and "img" not in reader.tags and HOSTILE[1] in reader.text


def test_gif_has_a_frame_for_each_step(tmp_path):
    with Image.open(export(trajectory(["one", "two two", "three"]), tmp_path / "run.gif")) as image:
        assert image.n_frames == 3
        frames = []
        for i in range(3):
            image.seek(i)
            frames.append(image.convert("L").tobytes())
    assert len(set(frames)) == 3


def test_png_is_a_picture(tmp_path):
    picture = matplotlib.image.imread(export(trajectory(["one", "two"]), tmp_path / "run.png"))
    assert picture.ndim == 3 and picture.std() > 0


def test_another_ending_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match=r"ends in '.pdf'; give a name that ends in .html, .gif, .png"):
        export(trajectory(["x"]), tmp_path / "run.pdf")
