"""Why documents have their ranks: one search explained, with the tokens that matched."""
