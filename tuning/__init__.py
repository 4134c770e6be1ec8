"""Tuning: searching parameters that are faster than the default ones, and keeping what is found."""
