"""The mechanistic study (arXiv 2407.10264): every figure and table as functions, its claims against controls. L7."""
