"""One run on several ranks: guidance branches and attention heads on processes of their own, on torch.distributed."""
