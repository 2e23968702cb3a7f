"""What the notebooks work with: `tools` to look and check with, `experiments` to measure with."""
