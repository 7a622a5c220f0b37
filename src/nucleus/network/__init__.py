"""The way out of a pod: pure parsers (`hello`, `dns`, `names`, `addresses`), and the gateway that stands on them."""
