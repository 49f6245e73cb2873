"""Verbs that look at data before anything is trained."""
