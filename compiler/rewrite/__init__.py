"""What schedules cannot say: rewrites of scheduled functions."""
