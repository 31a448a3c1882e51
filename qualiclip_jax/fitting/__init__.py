"""What ratings are used for: scores on their scale, heads, learned prompts, adapters."""
