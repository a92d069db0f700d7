"""What a run asks of a device, found out without one: the real code under fake tensors, every operation watched."""
