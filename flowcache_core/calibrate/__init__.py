"""Calibration: measure a model's velocities once, then choose which steps to compute for a given budget."""
