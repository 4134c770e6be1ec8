"""Strategies and schedules for CPUs."""
