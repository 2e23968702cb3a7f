"""What the notebooks show, turn and measure with: figures, panels, checks of exercises, the museum, the findings."""
