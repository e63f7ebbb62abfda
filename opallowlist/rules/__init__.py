"""What is refused: the lists of operators, the rules for graphs, nodes, tensors and names, and the contracts of interfaces."""
