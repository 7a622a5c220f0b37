"""What operations cost (`cost`) and how a budget is held and spent (`reservation`): integer micro-dollars, pure."""
