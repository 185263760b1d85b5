"""Who watches a run: JSONL log, W&B, TensorBoard, console, held-out evaluations, statistics and the HTML report."""
