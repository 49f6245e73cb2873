"""Runs on many machines: what a scheduler is given so that it starts one command on each of them."""
