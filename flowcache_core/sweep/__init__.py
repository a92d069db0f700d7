"""Many runs that need nothing of one another: in this process, or on the workers of a Ray cluster."""
