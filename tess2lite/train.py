"""`python -m tess2lite.train recipe.yaml [field=value …]`; see `training/run.py`."""

from .training.run import command

if __name__ == "__main__":
    command()
