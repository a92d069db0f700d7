"""The core's engine over the host's own Wan model."""
