"""What a model's loss by time says of the times that are worth visiting."""
