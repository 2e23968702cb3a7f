"""What stands behind `model.py`: E as a factor, rows of the vocabulary, and how families of decoders differ."""
