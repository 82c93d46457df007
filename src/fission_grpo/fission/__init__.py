"""Fission-GRPO itself (arXiv 2601.15625): failures become recovery tasks in a buffer, and a schedule uses them."""
