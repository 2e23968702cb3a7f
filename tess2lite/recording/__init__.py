"""What stands behind `trajectory.py`: its file, and the strings of its tokens."""
