"""What a run is asked for: plan, settings, start frames, prompts per chunk, memory."""
