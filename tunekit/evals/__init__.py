"""Measuring a model: tasks, how it answers them, scores and their intervals, gates."""
