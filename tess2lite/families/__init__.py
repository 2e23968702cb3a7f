"""What the decoder families of transformers have in common, and where they differ."""
