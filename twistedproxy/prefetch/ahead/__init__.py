"""What is loaded where callers look: around them in slides, before and behind them in stacks."""
