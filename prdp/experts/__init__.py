"""LoRA experts of one base: read from files without a network, merged into one, or mixed by a gate."""
