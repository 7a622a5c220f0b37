"""The command line: `main` dispatches, one file per verb, each imported only when its verb was typed."""
