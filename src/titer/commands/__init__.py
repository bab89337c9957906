"""What the commands do that train, ask and measure one model: from what a user asks for to stages, answers and tables."""
