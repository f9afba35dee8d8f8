"""What is told of a log: the table of its figures, and the values that are made from it."""
