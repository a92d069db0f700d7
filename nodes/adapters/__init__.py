"""The only place that knows both sides: host model to denoiser, core events to host progress and UI."""
