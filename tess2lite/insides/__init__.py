"""What a denoiser looks at: causes of a prediction, and the network from inside."""
