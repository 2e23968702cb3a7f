"""`python -m tess2lite.merge ADAPTER OUTPUT`; see `training/merge.py`."""

from .training.merge import command

if __name__ == "__main__":
    command()
