"""The multiplication as a TensorExpression."""
