"""Strategies and schedules for GPUs."""
