"""What a run will cost, said on the nodes before it begins: out of the graph alone, and exactly when it starts."""
