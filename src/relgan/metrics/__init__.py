"""Scores: feature networks, float64 accumulators, pure score functions and the evaluator that joins them."""
