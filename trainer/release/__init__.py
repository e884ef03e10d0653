"""From a trained network to a registered model: evaluated, exported, described, compared."""
