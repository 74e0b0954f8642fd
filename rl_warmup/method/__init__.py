"""How warmups become gradients: proposals, rollout, objectives, and when the policy takes over."""
