"""How a multiplication is done: operands, strategies and their costs, tuned records."""
