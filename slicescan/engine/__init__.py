"""What happens around a model: restoring photographs, training, measuring."""
