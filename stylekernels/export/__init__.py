"""Styles for programs without PyTorch, for browsers, and for C++."""
