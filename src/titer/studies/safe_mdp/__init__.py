"""Safe MDP planning: an unsafe pattern of a whole path, learned and averted. L7."""
