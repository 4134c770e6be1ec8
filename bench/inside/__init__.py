"""Calls inside a program: contenders beside a host's own parallel operations, in one process."""
