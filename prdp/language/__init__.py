"""Two language models that write together: a small one that learns which tokens to leave to a larger one (Co-LLM)."""
