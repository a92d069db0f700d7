"""What a run shows while it lasts and afterwards: progress, previews, pictures."""
