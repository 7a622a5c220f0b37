"""What tests, and people who check their own machine, share: ways to break things on purpose."""
