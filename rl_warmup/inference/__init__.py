"""What a trained model writes, how likely it makes targets, and how good its predictions are."""
