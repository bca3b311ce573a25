"""Train transformation networks and export them."""
