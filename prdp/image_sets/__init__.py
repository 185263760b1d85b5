"""Sets of images that training reads: made by `prdp generate`, of a model or of a folder of pictures."""
