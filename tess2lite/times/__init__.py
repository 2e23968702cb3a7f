"""Which times a run visits when they are not spread evenly."""
