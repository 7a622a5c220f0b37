"""AgentDojo without a model: what a fully hijacked agent still gets done through our decision function."""
